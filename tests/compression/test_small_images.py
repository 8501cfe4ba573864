import torch
from torch.nn.functional import interpolate

from norton_det.compression.small_images import SmallImages


class Counted(list):
    def __getitem__(self, index):
        self.read = [*getattr(self, "read", []), index]
        return super().__getitem__(index)


def test_large_images_are_shrunk_once_and_small_ones_are_kept(tmp_path):
    generator = torch.Generator().manual_seed(0)
    smooth = [torch.rand(1, 3, 6, 8, generator=generator) for _ in range(3)]
    sizes = [(60, 80), (300, 400), (200, 1000)]
    images = Counted(interpolate(image, size, mode="bilinear")[0] for image, size in zip(smooth, sizes, strict=True))
    small = SmallImages(images, 100, 150, tmp_path)
    for _ in range(2):
        assert [small[index].shape for index in (2, 0, 1)] == [(3, 30, 150), (3, 60, 80), (3, 100, 133)]
    assert images.read == [2, 0, 1]
    assert (small[0] - images[0]).abs().max() <= 0.5 / 255 + 1e-6
    expected = interpolate(images[1][None], (100, 133), mode="bilinear", antialias=True)[0]
    assert (small[1] - expected).abs().max() < 0.02
