"""Detectors of others, built by the package `transformers` with random weights."""

import io

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Peer(nn.Module):
    """A detector that takes images only and gives what it predicts: boxes (B, N, 4) and logits (B, N, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Detect on images (B, 3, H, W); no pixel is padding."""
        height, width = images.shape[2:]
        output = self.model(images, pixel_mask=torch.ones(images.shape[0], height, width, dtype=torch.long))
        return output.pred_boxes, output.logits


def detr_r50() -> Peer:
    """Build DETR with a ResNet-50."""
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
    )
    model = transformers.DetrForObjectDetection(config)
    model.set_attn_implementation("eager")  # in the fused form PyTorch does not count the products
    return Peer(model)


def rtdetr_r18(image: tuple[int, int]) -> Peer:
    """Build RT-DETR with a ResNet-18 for one input size, as its authors' configuration of that name has it."""
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        anchor_image_size=list(image),
    )
    model = transformers.RTDetrForObjectDetection(config)
    model.set_attn_implementation("eager")
    return Peer(model)


def dfine_n(classes: int) -> nn.Module:
    """Build D-FINE-N, as its authors' configuration of that name has it: 3.7 M parameters, 3.6 GMACs at 640x640."""
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        hidden_sizes=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_features=["stage3", "stage4"],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # for weights that someone else has trained; these are random
        encoder_in_channels=[512, 1024],
        feat_strides=[16, 32],
        encoder_hidden_dim=128,
        d_model=128,
        encode_proj_layers=[1],
        encoder_ffn_dim=512,
        hidden_expansion=0.34,
        depth_mult=0.5,
        decoder_in_channels=[128, 128],
        num_feature_levels=2,
        decoder_layers=3,
        decoder_ffn_dim=512,
        decoder_n_points=[6, 6],
        num_labels=classes,
        initializer_bias_prior_prob=0.01,
    )
    return transformers.DFineForObjectDetection(config)


def count_gmacs(model: nn.Module, image: tuple[int, int]) -> float:
    """Count the multiply-adds of convolutions and matrix products at batch 1, in units of 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *image))
    return counter.get_total_flops() / 2e9


def export(model: nn.Module, image: tuple[int, int], *, opset: int) -> bytes:
    """Export a detector for one image size: static shapes, batch 1, the dynamo exporter."""
    program = torch.onnx.export(
        model, (torch.rand(1, 3, *image),), input_names=["images"], opset_version=opset, dynamo=True, verbose=False
    )
    content = io.BytesIO()
    program.save(content)
    return content.getvalue()
