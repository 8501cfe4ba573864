from torch import nn

from norton_det.models.modes import evaluating


def test_every_module_has_its_own_mode_again_also_after_an_error():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout()))
    network[0].eval()
    modes = [module.training for module in network.modules()]
    try:
        with evaluating(network) as seen:
            assert seen is network and not any(module.training for module in network.modules())
            raise KeyError
    except KeyError:
        pass
    assert [module.training for module in network.modules()] == modes == [True, False, True, True]
