"""FusionOcc keyframe by keyframe: pictures that were seen before are not looked at again, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from fusionocc_cases import golden_model, little_config, official_habits, random_batch, with_reference_weights
from test_fusionocc_properties import make_frame

from fusionocc_core.checkpoints import ModelCard
from fusionocc_core.models.fusionocc import FusionOcc, KeptPictures
from fusionocc_core.predictor import Predictor, network_for_inference

CPU = torch.device("cpu")
NAMES = ("logits_BKXYZ", "depth_logits_BNDhw", "seg_logits_BNKhw")


@pytest.fixture(scope="module")
def three_frames():
    """A network that looks two keyframes back, with the official habits."""
    config = official_habits(little_config())
    config = replace(config, inputs=replace(config.inputs, camera_history=2))
    return with_reference_weights(FusionOcc(config))


def drive(config, keyframes, samples=1, cameras=2):
    """Batches of consecutive keyframes: the earlier pictures of each are those that were current before. The vehicle
    moves, the grid is turned and mirrored anew, and the clouds differ."""
    pictures = [random_batch(config, samples, cameras, seed=seed).images_BTNCHW[:, 0] for seed in range(keyframes + 2)]
    for number in range(keyframes):
        batch = random_batch(config, samples, cameras, seed=50 + number)
        newest = number + config.num_frames - 1
        earlier = [pictures[newest - time] for time in range(config.num_frames)]
        poses, bev = batch.cam2keyego_BTN44.clone(), batch.bev_aug_B44.clone()
        poses[:, 1:, :, 0, 3] -= 0.7 * number
        bev[:, 1, 1] = (-1.0) ** number
        yield replace(batch, images_BTNCHW=torch.stack(earlier, dim=1), cam2keyego_BTN44=poses, bev_aug_B44=bev)


def counted(network):
    """The pictures that a network's backbone looked at, call by call."""
    seen = []
    network.img_backbone.register_forward_pre_hook(lambda part, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stream_gives_the_answers_of_single_keyframes_to_the_bit(precision):
    network = network_for_inference(golden_model("official"), CPU, precision)
    seen, kept = counted(network), None
    for number, batch in enumerate(drive(network.config, 3, samples=2)):
        seen.clear()
        outputs, kept = network.next_keyframe(batch, kept)
        assert sum(seen) == (8 if number == 0 else 4)
        with torch.no_grad():
            alone = network(batch)
        assert all(torch.equal(getattr(outputs, name), getattr(alone, name)) for name in NAMES)


def test_two_earlier_keyframes(three_frames):
    seen, kept = counted(three_frames), None
    for number, batch in enumerate(drive(three_frames.config, 3)):
        seen.clear()
        outputs, kept = three_frames.next_keyframe(batch, kept)
        assert sum(seen) == (6 if number == 0 else 2)
        with torch.no_grad():
            assert torch.equal(outputs.logits_BKXYZ, three_frames(batch).logits_BKXYZ)


@pytest.mark.parametrize("change", ["skipped", "one pixel", "cameras", "samples", "not a number"])
def test_other_pictures_are_looked_at(change):
    network = golden_model("correct")
    batches = list(drive(network.config, 3))
    _, kept = network.next_keyframe(batches[0], None)
    batch = batches[1]
    if change == "skipped":
        batch = batches[2]
    elif change == "one pixel":
        batch.images_BTNCHW[0, 1, 1, 2, -1, -1] += 1e-3
    elif change == "not a number":
        kept.images_BTNCHW[0, 0, 0, 0, 0, 0] = batch.images_BTNCHW[0, 1, 0, 0, 0, 0] = torch.nan
    elif change == "cameras":
        batch = random_batch(network.config, cameras=3)
    else:
        batch = random_batch(network.config, samples=2, cameras=2)
    seen = counted(network)
    outputs, _ = network.next_keyframe(batch, kept)
    assert sum(seen) == 2 * batch.depth_BNHW.shape[0] * batch.depth_BNHW.shape[1]
    if change != "not a number":
        assert torch.equal(outputs.logits_BKXYZ, network.next_keyframe(batch, None)[0].logits_BKXYZ)


def test_what_is_kept_is_its_own():
    """A batch whose memory is used again must not look like the keyframe that was there before."""
    network = golden_model("correct")
    first, second = drive(network.config, 2)
    _, kept = network.next_keyframe(first, None)
    first.images_BTNCHW[:, 0] = second.images_BTNCHW[:, 0]
    seen = counted(network)
    network.next_keyframe(replace(second, images_BTNCHW=first.images_BTNCHW.flip(1)), kept)
    assert sum(seen) == 4


def test_a_network_without_history_keeps_nothing():
    config = little_config()
    network = with_reference_weights(FusionOcc(replace(config, inputs=replace(config.inputs, camera_history=0))))
    batch = random_batch(network.config, cameras=1)
    outputs, kept = network.next_keyframe(batch, None)
    assert kept.features == ()
    assert kept.images_BTNCHW.numel() == 0
    assert torch.equal(network.next_keyframe(batch, kept)[0].logits_BKXYZ, outputs.logits_BKXYZ)


def test_what_does_not_fit_is_refused():
    network = golden_model("correct")
    batch = random_batch(network.config, cameras=1)
    _, kept = network.next_keyframe(batch, None)
    other = KeptPictures(images_BTNCHW=kept.images_BTNCHW, features=(kept.features[0][:, :, :3],))
    with pytest.raises(ValueError, match=r"have \[3\] channels, expected 1 frames of 16"):
        network.next_keyframe(batch, other)
    with pytest.raises(ValueError, match="training mode; call eval"):
        network.train().next_keyframe(batch, None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_predictor_keeps_pictures_and_answers_as_a_new_one(precision, monkeypatch):
    model = golden_model("official")
    model.card = ModelCard(preset="little", trained_on="")
    now = make_frame(torch.eye(4).double().numpy())
    later = make_frame(torch.eye(4).double().numpy())
    moved = tuple(replace(camera, image=camera.image[::-1].copy()) for camera in later.cameras)
    later = replace(later, cameras=moved, camera_history=(now.cameras,))
    predictor = Predictor(model, device="cpu", precision=precision)
    seen = counted(predictor._network)
    predictor(now)
    assert sum(seen) == 6
    seen.clear()
    found = predictor(later)
    assert sum(seen) == 3
    fresh = Predictor(model, device="cpu", precision=precision)(later)
    assert (found.labels == fresh.labels).all()
    assert len(set(found.labels.flatten().tolist())) > 3


def test_fast_networks_agree_with_the_plain_one():
    for habits in ("official", "correct"):
        plain = golden_model(habits)
        batch = random_batch(plain.config, samples=2, cameras=2)
        with torch.no_grad():
            expected = plain(batch)
            exact = network_for_inference(plain, CPU, "float32")(batch)
            halved = network_for_inference(plain, CPU, "bfloat16")(batch)
        for name in NAMES:
            one = getattr(expected, name)
            assert (one - getattr(exact, name)).abs().max() < 1e-5 * one.abs().max()
            assert 0 < (one - getattr(halved, name)).abs().max() < 0.05 * one.abs().max()
        same = expected.logits_BKXYZ.argmax(dim=1) == halved.logits_BKXYZ.argmax(dim=1)
        assert same.float().mean() > 0.995
