"""Semantic 3D Gaussians: what Gaussian networks predict, splatting turns into voxels, and viewers and files show.

Shape suffixes: B batch, G Gaussians, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_CLASS = 255
"""Label of Gaussians in files that say nothing about classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianCloud:
    """The Gaussians of one sample as files, pictures and messages hold them: each has one class."""

    means_G3: NDArray[np.float32]
    """Centres (x, y, z), metres."""
    scales_G3: NDArray[np.float32]
    """Standard deviations along the Gaussian's own three axes, metres, above zero."""
    rotations_G4: NDArray[np.float32]
    """Unit quaternions (w, x, y, z), local2frame: they turn the Gaussian's own axes into the frame (the inverse of what
    Gaussians holds)."""
    opacities_G: NDArray[np.float32]
    """0 to 1."""
    labels_G: NDArray[np.uint8]
    """Class ids."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together and values that no ellipsoid has."""
        num = len(self.means_G3)
        shapes = {"means_G3": (num, 3), "scales_G3": (num, 3), "rotations_G4": (num, 4), "opacities_G": (num,)}
        for name, shape in {**shapes, "labels_G": (num,)}.items():
            array, dtype = getattr(self, name), np.uint8 if name == "labels_G" else np.float32
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"GaussianCloud.{name}: {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape} beside "
                    f"{num} means"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"GaussianCloud.{name}: {int((~np.isfinite(array)).sum())} values are not finite")
        if (self.scales_G3 <= 0).any():
            raise ValueError(f"GaussianCloud.scales_G3: {float(self.scales_G3.min()):g} m; expected all above zero")
        if (np.abs(np.linalg.norm(self.rotations_G4, axis=1) - 1) > 1e-3).any():
            raise ValueError("GaussianCloud.rotations_G4: expected quaternions of length 1; divide them by their norm")

    def __len__(self) -> int:
        """How many."""
        return len(self.means_G3)

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> GaussianCloud:
        """Some of them, in the order of ``index``."""
        return GaussianCloud(**{name: array[index] for name, array in vars(self).items()})

    def most_opaque(self, most: int) -> GaussianCloud:
        """The ``most`` with the largest opacity, largest first; all of them where there are no more."""
        return self.select(np.argsort(-self.opacities_G, kind="stable")[:most])

    def local2frame_G33(self) -> NDArray[np.float32]:
        """Rotation matrices; their columns are the Gaussians' own axes in the frame."""
        w, x, y, z = self.rotations_G4.T
        entries = [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]  # fmt: skip
        return np.stack(entries, axis=1).reshape(-1, 3, 3)


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """A set of Gaussians a sample, in one metric frame (whichever the grid has that they are splatted into).

    All tensors have one floating dtype and device. GaussianFormer (Huang et al., ECCV 2024) defines the parameters.
    """

    means_BG3: Tensor
    """Centres (x, y, z), metres."""
    scales_BG3: Tensor
    """Standard deviations along the Gaussian's own three axes, metres, above zero."""
    rotations_BG4: Tensor
    """Quaternions (w, x, y, z) of any length but zero: frame2local, so that the Gaussian's own axes are the rows of the
    rotation matrix. Files of Gaussian splatting (.ply) hold local2frame: the same with x, y, z negated."""
    opacities_BG: Tensor
    """Weight of each Gaussian, usually 0 to 1; ones where a network has none."""
    semantics_BGC: Tensor
    """What each Gaussian says about each class: logits, or probabilities; the network's head knows which."""

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together."""
        leading = tuple(self.means_BG3.shape[:2])
        expected = {
            "means": (*leading, 3),
            "scales": (*leading, 3),
            "rotations": (*leading, 4),
            "opacities": leading,
            "semantics": (*leading, self.semantics_BGC.shape[-1] if self.semantics_BGC.ndim else 0),
        }
        for name, tensor in self._named().items():
            if len(leading) != 2 or tuple(tensor.shape) != expected[name]:
                raise ValueError(
                    f"Gaussians.{name}: shape {tuple(tensor.shape)} beside means {tuple(self.means_BG3.shape)}; "
                    "expected means and scales (B, G, 3), rotations (B, G, 4), opacities (B, G), semantics (B, G, C)"
                )
            if not tensor.is_floating_point() or tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(
                    f"Gaussians.{name}: {tensor.dtype} on {tensor.device} beside means with {self.dtype} on "
                    f"{self.device}; expected one floating dtype and one device for all"
                )

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return self.means_BG3.dtype

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.means_BG3.device

    @property
    def batch_size(self) -> int:
        """How many samples."""
        return self.means_BG3.shape[0]

    @property
    def num(self) -> int:
        """How many Gaussians a sample."""
        return self.means_BG3.shape[1]

    @property
    def num_classes(self) -> int:
        """How many numbers each Gaussian's semantics have."""
        return self.semantics_BGC.shape[2]

    def to(self, target: torch.dtype | torch.device | str) -> Gaussians:
        """The same set with another dtype or on another device; gradients flow."""
        return Gaussians(
            means_BG3=self.means_BG3.to(target),
            scales_BG3=self.scales_BG3.to(target),
            rotations_BG4=self.rotations_BG4.to(target),
            opacities_BG=self.opacities_BG.to(target),
            semantics_BGC=self.semantics_BGC.to(target),
        )

    def frame2local_BG33(self) -> Tensor:
        """Rotation matrices (B, G, 3, 3); their rows are the Gaussians' own axes in the frame."""
        w, x, y, z = (self.rotations_BG4 / self.rotations_BG4.norm(dim=-1, keepdim=True)).unbind(-1)
        entries = [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]  # fmt: skip
        return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))

    def covariances_BG33(self) -> Tensor:
        """Covariance matrices (B, G, 3, 3) in the frame, square metres."""
        scaled = self.scales_BG3.unsqueeze(-1) * self.frame2local_BG33()
        return scaled.mT @ scaled

    def precisions_BG33(self) -> Tensor:
        """Inverse covariances (B, G, 3, 3), 1 / square metres; written down, not inverted, so flat ones stay exact."""
        scaled = self.frame2local_BG33() / self.scales_BG3.unsqueeze(-1)
        return scaled.mT @ scaled

    def _named(self) -> dict[str, Tensor]:
        return {
            "means": self.means_BG3,
            "scales": self.scales_BG3,
            "rotations": self.rotations_BG4,
            "opacities": self.opacities_BG,
            "semantics": self.semantics_BGC,
        }

    def check_values(self, smallest_scale: float, largest_scale: float) -> None:
        """Refuse numbers that nothing sensible can be computed from.

        Raises:
            ValueError: values that are not finite, scales outside the given bounds (metres), quaternions of length 0.
        """
        for name, tensor in self._named().items():
            bad = ~tensor.isfinite()
            if bad.any():
                raise ValueError(
                    f"Gaussians.{name}: {int(bad.sum())} of {tensor.numel()} values are not finite, the first at "
                    f"{bad.nonzero()[0].tolist()}; the network or its learning rate has diverged"
                )
        bad = (self.scales_BG3 < smallest_scale) | (self.scales_BG3 > largest_scale)
        if bad.any():
            raise ValueError(
                f"Gaussians.scales: {int(bad.sum())} values such as {float(self.scales_BG3[bad][0]):g} m lie outside "
                f"{smallest_scale:g} to {largest_scale:g} m; bound them, e.g. low + (high - low) * sigmoid(raw)"
            )
        bad = self.rotations_BG4.double().norm(dim=-1) < 1e-6
        if bad.any():
            raise ValueError(
                f"Gaussians.rotations: {int(bad.sum())} quaternions have length zero, the first at "
                f"{bad.nonzero()[0].tolist()}; (1, 0, 0, 0) is no rotation"
            )


def cloud_of(gaussians: Gaussians, sample: int = 0) -> GaussianCloud:
    """One sample of a network's Gaussians, each with the class that its semantics favour.

    The position of a number in the semantics is the class id. Opacities beyond 0 to 1 are brought to the nearer end.

    Raises:
        ValueError: values that are not finite, scales of zero or quaternions without a direction.
    """
    gaussians.check_values(0.0, float("inf"))
    rotations_G4 = gaussians.rotations_BG4[sample].detach().double()
    conjugate_4 = rotations_G4.new_tensor([1.0, -1.0, -1.0, -1.0])
    rotations_G4 = rotations_G4 / rotations_G4.norm(dim=1, keepdim=True) * conjugate_4

    def array(tensor: Tensor) -> NDArray[np.float32]:
        return np.ascontiguousarray(tensor.detach().float().cpu().numpy())

    return GaussianCloud(
        means_G3=array(gaussians.means_BG3[sample]),
        scales_G3=array(gaussians.scales_BG3[sample]),
        rotations_G4=array(rotations_G4),
        opacities_G=array(gaussians.opacities_BG[sample].clamp(0, 1)),
        labels_G=gaussians.semantics_BGC[sample].argmax(dim=1).to(torch.uint8).cpu().numpy(),
    )
