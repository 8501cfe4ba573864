"""The tables of a detector on a machine that is known: times by settings, agreement by settings."""

from types import SimpleNamespace

import pytest
from detectors import tiny_detector

from norton_det.compression.plan import CompressionPlan
from norton_det.models.settings import read_settings
from norton_det.shrink.bench import Bench
from norton_det.shrink.levers import SIZES, proposal_counts
from norton_det.shrink.measuring import measure_dense, measure_plan, measure_plans
from norton_det.shrink.memory import Memory

FASTER = {"float32": 1.0, "int8": 0.25}


class Machine:
    """Takes a tenth of a unit and what layers and proposals take; agrees the less the smaller all is."""

    def __init__(self):
        self.built = []

    def build(self, detector, precision):
        self.built.append(precision)
        return SimpleNamespace(detector=detector, precision=precision)

    def share(self, built):
        settings = read_settings(built.detector)
        proposals = settings.get("rpn_post_nms_top_n_test", 0)
        layers = sum(p.numel() for p in built.detector.parameters()) / 1e5
        return 0.1 + FASTER[built.precision] * (layers * (settings["min_size"][-1] / 64) ** 2 + proposals / 100)

    def agreement(self, built):
        settings = read_settings(built.detector)
        lost = 10 * (1 - settings["min_size"][-1] / 64) + (settings.get("rpn_post_nms_top_n_test", 50) < 20)
        return (99 if built.precision == "float32" else 90) * (1 - lost / 10)

    def bench(self):
        return Bench(self.build, self.build, self.share, self.agreement)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_times_and_agreements_are_those_of_each_lever_alone_and_are_measured_once(kind, tmp_path):
    dense, machine = tiny_detector(kind, "resnet18"), Machine()
    counts = proposal_counts(dense)
    table = measure_dense(machine.bench(), Memory(tmp_path), dense, ["float32", "int8"], counts)
    for precision in FASTER:
        built = machine.build(dense, precision)
        assert table.times[precision][1.0] == pytest.approx(machine.share(built))
        assert table.precisions[precision] == pytest.approx(machine.agreement(built) / 100)
        for count, taken in table.by_proposals[precision].items():
            saved = FASTER[precision] * (counts[0] - count) / 100
            assert taken == pytest.approx(machine.share(built) - saved)
    assert [*table.sizes] == [*SIZES] and table.sizes[1.0] == table.proposals[counts[0]] == 1
    assert table.sizes[0.5] == pytest.approx(0.5)
    assert [*table.proposals] == [*counts]

    again = Machine()
    assert measure_dense(again.bench(), Memory(tmp_path), dense, ["float32", "int8"], counts) == table
    assert again.built == []


def test_more_work_never_takes_less_time_however_noisy_the_machine(tmp_path):
    dense, machine = tiny_detector("faster_rcnn", "resnet18"), Machine()

    def noisy(built):
        is_busy = read_settings(built.detector)["min_size"][-1] == round(0.85 * 64)
        return machine.share(built) * (2 if is_busy else 1)

    bench = Bench(machine.build, machine.build, noisy, machine.agreement)
    times = measure_dense(bench, Memory(tmp_path), dense, ["float32"], proposal_counts(dense)).times["float32"]
    assert [times[size] for size in sorted(times)] == sorted(times.values())
    assert times[0.85] == pytest.approx(times[1.0])
    assert times[0.5] == pytest.approx(machine.share(bench.build(dense, "float32")) * 0.25, rel=0.5)


def test_plans_are_measured_in_the_first_precision_and_lie_as_far_apart_in_the_others(tmp_path):
    dense, machine = tiny_detector("faster_rcnn", "resnet18"), Machine()
    plans = {
        str(rate): CompressionPlan(rates={f"layer{stage}": rate for stage in (1, 2, 3)}) for rate in (0.6, 0.3, 0.0)
    }
    lines = measure_plans(machine.bench(), Memory(tmp_path), dense, plans, ["float32", "int8"], 3)
    assert machine.built == ["float32"] * 3 + ["int8"] * 2
    for name in plans:
        assert lines[name, "int8"].layers == pytest.approx(FASTER["int8"] * lines[name, "float32"].layers)
    assert lines["0.6", "int8"].layers < lines["0.3", "int8"].layers < lines["0.0", "int8"].layers


def test_a_plan_is_measured_with_its_own_layers(tmp_path):
    dense, machine = tiny_detector("faster_rcnn", "resnet18"), Machine()
    rates = {f"layer{stage}": 0.5 for stage in (1, 2, 3)}
    lines = {
        name: measure_plan(machine.bench(), Memory(tmp_path), dense, name, plan, "float32", 3)
        for name, plan in (("dense", CompressionPlan()), ("half", CompressionPlan(rates=rates)))
    }
    parameters = sum(p.numel() for p in dense.parameters())
    assert lines["dense"].layers == pytest.approx(parameters / 1e5, rel=0.02)
    assert lines["half"].layers < 0.95 * lines["dense"].layers
    assert lines["half"].fixed == pytest.approx(lines["dense"].fixed)
