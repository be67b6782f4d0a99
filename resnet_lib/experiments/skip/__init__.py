"""The chapter on skip connections: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.skip.capacity import CAPACITY, CAPACITY_RATES
from resnet_lib.experiments.skip.gan import GAN
from resnet_lib.experiments.skip.gradients import GRADIENTS
from resnet_lib.experiments.skip.joins import JOINS
from resnet_lib.experiments.skip.pix2pix import PIX2PIX
from resnet_lib.experiments.skip.reconstruction import RECONSTRUCTION, SILENCED, SPECTRUM
from resnet_lib.experiments.skip.sizes import SIZES

EXPERIMENTS = (JOINS, SIZES, GRADIENTS, RECONSTRUCTION, SPECTRUM, SILENCED, CAPACITY_RATES, CAPACITY, PIX2PIX, GAN)


def answer(e):
    """The question's answer in three sentences."""
    return f"""\
**Skips carry where things are: fine detail that the bottleneck cannot hold, and they do it without more parameters.**
At equal parameters they gain {e["reconstruction/psnr_gain"]} of fidelity and {e["reconstruction/detail_gain"]} of the fine detail; mirrored, so that they bring each pixel to the wrong side, {e["reconstruction/mirror_psnr_gain"]}.
They go around the place where a gradient vanishes: under PyTorch's default weights they narrow its spread by {e["gradients/default_gain"]}, and {e["gradients/default_remaining"]} are left (a decade is a factor of ten).
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    words = "Larger", "Smaller", "Neither for sure"
    bottleneck = page.trend(e["gradients/plain_bottleneck_change"], *words)
    more = page.trend(e["capacity/memorisation_gain"], "help", "hinder", "show no clear difference")
    return f"""\
1. Without its skips it loses {e["reconstruction/denoise_psnr_gain"]} in removing noise, and {e["reconstruction/psnr_gain"]} over the aligned tasks.
2. If the picture must come out mirrored, it loses {e["reconstruction/mirror_psnr_gain"]}.
3. {bottleneck}: with skips the gradient amid the bottleneck changes by {e["gradients/plain_bottleneck_change"]} without a norm and by {e["gradients/batch_norm_bottleneck_change"]} with batch norm.
4. In memorising random labels skips {more}: {e["capacity/memorisation_gain"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    words = "lowered", "raised", "did not clearly change"
    pix, gan = (page.trend(e[name], *words) for name in ("pix2pix/l1_gain", "gan/frechet_gain"))
    return f"""\
- **Give a network that returns a picture its skips, where output and input are aligned.** They gained {e["reconstruction/psnr_gain"]} and {e["reconstruction/detail_gain"]} of the fine detail.
- **Where output and input are not aligned, measure before you add them.** Mirrored, they gained {e["reconstruction/mirror_psnr_gain"]}.
- **Add rather than concatenate where parameters are dear.** Concatenation costs {e["capacity/parameters_added_by_concatenation"].mean:.1%} more of them here, addition none; added skips gained {e["reconstruction/added_psnr_gain"]}.
- **If the bottleneck's code is what you want, cut the finest skips.** With skips, silencing it costs {e["silenced/lost_with_skips"]}; without, {e["silenced/lost_without_skips"]}.
- **Cure gradients by the weights and the norm, not by skips.** Skips narrowed the spread by {e["gradients/default_gain"]} under PyTorch's default weights and by {e["gradients/batch_norm_gain"]} with batch norm; He's weights alone narrow it to {e["gradients/plain_spread"]}.
- **In pix2pix and GANs, measure on your own pictures.** Skips {pix} the held-out L1 ({e["pix2pix/l1_gain"]}) and {gan} the Fréchet distance of a GAN ({e["gan/frechet_gain"]}).
"""
