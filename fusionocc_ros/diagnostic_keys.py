"""What each value on /diagnostics means. ROS-free; a test holds it equal to what is published."""

from __future__ import annotations

STATUSES: dict[str, str] = {
    "inputs": "a sensor is silent for two seconds (an error for the LiDAR), with what may be the matter: nobody "
    "publishes, another type, a quality of service that does not match; or sets went without a sensor; or simulated "
    "time stands still for five seconds while no set is worked on",
    "sets": "sweeps were dropped since the last message (`superseded` aside)",
    "inference": "",
    "ego motion": "it is not known",
}
"""Status to when it warns; empty: never."""

KEYS: tuple[tuple[str, str, str], ...] = (
    ("inputs", "state", "of the lifecycle"),
    ("inputs", "<sensor> received", "messages"),
    ("inputs", "<sensor> rate [Hz]", "since the report before"),
    ("inputs", "<sensor> last message [s ago]", "age of the last message, or `never`"),
    ("inputs", "<sensor> messages not kept: <cause>", "pictures and clouds that the synchroniser refused"),
    ("sets", "sweeps received", "or, without a LiDAR, pictures of the reference camera"),
    ("sets", "sets released", "by the synchroniser"),
    ("sets", "sets with every camera", "of those"),
    ("sets", "occupancy published", "results"),
    ("sets", "in hand", "sweeps that wait or are worked on"),
    ("sets", "time jumps", "how often the stamps jumped back"),
    ("sets", "dropped: <cause>", "sweeps that gave no result; see below"),
    ("sets", "sets without <sensor>", "sets that went without it"),
    ("sets", "sets late for <sensor>", "sets that waited for it until the deadline"),
    ("sets", "left out <sensor>: <cause>", "its messages that could not be used, while the set went on without"),
    ("sets", "points_not_finite", "points that were left out of clouds"),
    ("sets", "keyframes_skipped", "earlier keyframes that could not be used"),
    ("inference", "model", "preset or file"),
    ("inference", "trained on", "what its weights have seen"),
    ("inference", "model hash", "of the weights, or of the exported graph: the same on vehicles that run the same"),
    ("inference", "device", "where the network runs"),
    ("inference", "rate [Hz]", "results since the report before"),
    (
        "inference",
        "latency p50 [ms]",
        "from the sweep's arrival to publishing, of the last 200 results; also p95 and p99",
    ),
    ("inference", "network p50 [ms]", "the network alone; also p95 and p99"),
    ("inference", "resident memory [MiB]", "of the process"),
    ("inference", "CUDA memory [MiB]", "that PyTorch has allocated, on a GPU"),
    ("inference", "messages on <topic>", "messages sent"),
    ("inference", "could not be made: <topic>", "results that could not be shown in this form; the log says why"),
    ("ego motion", "source", "tf, odometry or none"),
)
"""Status, key, meaning."""
