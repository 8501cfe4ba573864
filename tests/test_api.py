"""What `import norton_det` offers passes on what it is asked for."""

import torch
from norton_det.models.resnet import ResNetSpec, build_resnet50

import norton_det
from norton_det.layers.cp_conv import CPConv2d


def test_rank_and_criterion_are_those_that_are_asked_for():
    torch.manual_seed(0)
    network = build_resnet50(ResNetSpec.dense(0.125), num_classes=3)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight)
    plan = {"ranks": {"layer1.0.conv2": 1}, "rates": {"layer1.0.conv2": 0.5}}
    by_factors, report = norton_det.compress(network, plan, rank=3)
    by_deviation, other = norton_det.compress(network, plan, criterion="deviation")
    assert (by_factors.layer1[0].conv2.rank, by_deviation.layer1[0].conv2.rank) == (3, 1)
    largest = network.layer1[0].bn2.weight.topk(4).indices.sort().values.tolist()
    assert other.kept["layer1.0.conv2"] == largest != report.kept["layer1.0.conv2"]


def test_a_plan_for_a_whole_detector_builds_its_parts_factorised():
    with torch.device("meta"):
        detector = norton_det.build_detector("mask_rcnn", plan="norton-43-all")
    assert isinstance(detector.backbone.fpn.layer_blocks[0][0], CPConv2d)
    assert detector.roi_heads.box_head.fc6.rank == 128
