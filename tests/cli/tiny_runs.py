"""Training of a tiny detector on the drawn images, a few seconds long."""

from norton_det.cli.main import main

SMALL = [
    "model.width=0.125",
    "model.min_size=96",
    "model.max_size=128",
    "model.fpn_channels=16",
    "model.box_channels=32",
    "model.mask_channels=8",
    "model.keypoint_channels=8",
]
SIZES = {"channels": 16, "box": 32, "mask": 8, "keypoint": 8}
TINY = [
    *SMALL,
    "train.batch_size=2",
    "test.batch_size=2",
    "train.log_period=1",
    "model.recover_images=0",
    "model.train_proposals=50",
    "model.test_proposals=50",
]


def train(config, *words):
    """Run the command on `datasets`, from random weights; return its exit code."""
    return main(
        [
            "train",
            "--config",
            config,
            "data.train=shapes_train",
            "data.test=shapes_val",
            "data.workers=0",
            "model.backbone_weights=none",
            "device=cpu",
            *TINY,
            *words,
        ]
    )
