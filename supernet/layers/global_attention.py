"""Blocks that see the whole map: cross-covariance attention (XCA, channel-wise) and the original token attention."""

import math

import torch
from torch import Tensor, nn

from nas.blocks import HEAD_WIDTH, XCA_HEADS, Activation, Block, Layout
from supernet.layers.axes import Axis
from supernet.layers.conv_bn import ConvBN
from supernet.layers.drop_path import DropPath
from supernet.layers.forms import Rows, form_of
from supernet.layers.layout import to_rows
from supernet.layers.mlp import MLP, make_activation

NORM_FLOOR = 1e-3
"""Least root mean square of a channel over the tokens: an all-zero map gives zeros and no NaN, in float16 too."""


class XCA(nn.Module):
    """x += proj(softmax(t q^ k^T) v) over channels; x += LPI(x); x += MLP(x).

    q^ and k^ are L2-normalised along the tokens (XCiT). q and k are first divided by sqrt(H*W), which changes nothing
    but keeps the sums of squares small enough for float16; the norms divide the small (c x c) product, not the maps.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        channels = block.channels_in
        self.form = form_of(block)
        scale = torch.ones(3, channels)
        scale[:2] = block.tokens**-0.5
        self.qkv = self.form.channel_linear(
            channels, 3 * channels, reads=Axis.IN, writes=Axis.XCA_INNER, row_scale=scale.flatten()
        )
        self.temperature = nn.Parameter(torch.ones(XCA_HEADS, 1, 1))
        self.proj = self.form.channel_linear(channels, channels, reads=Axis.XCA_INNER, writes=Axis.OUT, last=True)
        self.lpi = LocalPatchInteraction(channels, block.activation)
        self.mlp = MLP(block, self.form)
        self.drop = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Attend and mix neighbours with the channels first, then run the MLP; return the layout the block gives."""
        images = len(x)
        x = self.form.channels_first(x, self.block.layouts[0])
        x = x + self.drop(self.proj(self.attend(self.qkv(x))), images)
        spatial = self.form.spatial(x)
        x = self.form.enter(spatial + self.drop(self.lpi(spatial), images), Layout.SPATIAL)
        x = x + self.drop(self.mlp(x), images)
        return self.form.leave(x)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend between channels: (B, 3 * C, ...positions) -> (B, C, ...positions)."""
        heads = qkv.reshape(qkv.shape[0], 3 * XCA_HEADS, -1, self.block.tokens)
        query, key, value = torch.split(heads, XCA_HEADS, dim=1)
        # Under autocast q and k are float32 because the row_scale that `qkv` ends in is: small squares are summed here.
        # Squares and a sum: ONNX Runtime's ReduceL2 takes three times as long.
        norms = [(part * part).sum(dim=-1, keepdim=True).clamp(min=NORM_FLOOR**2).sqrt() for part in (query, key)]
        scores = query @ key.transpose(-2, -1) * (self.temperature / norms[0]) / norms[1].transpose(-2, -1)
        mixed: Tensor = scores.softmax(dim=-1) @ value
        return mixed.view(qkv.shape[0], qkv.shape[1] // 3, *qkv.shape[2:])


class LocalPatchInteraction(nn.Module):
    """LPI: depth-wise 3x3 - BN - activation - depth-wise 3x3 - BN on (B, C, H, W) (XCiT, BN moved so that it folds)."""

    def __init__(self, channels: int, activation: Activation | None) -> None:
        super().__init__()
        self.first = ConvBN(channels, channels, reads=Axis.WHOLE, writes=Axis.OUT, depthwise=True)
        self.activation = make_activation(activation)
        self.second = ConvBN(channels, channels, reads=Axis.WHOLE, writes=Axis.OUT, depthwise=True, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, without the residual."""
        y: Tensor = self.second(self.activation(self.first(x)))
        return y


class Attention(nn.Module):
    """x += proj(softmax(q k^T / sqrt(32)) v); x[kept] += MLP(x[kept]), with C/32 heads over N tokens.

    With `kept_tokens` = K < N only the K tokens that receive most attention pass the MLP (paper: sparsity < 18 %); the
    others keep their value and their place. Tokens are chosen among rows, whatever the layout.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        channels = block.channels_in
        self.form = form_of(block)
        self.heads = channels // HEAD_WIDTH
        per_head = torch.ones(3 * HEAD_WIDTH)
        per_head[:HEAD_WIDTH] = HEAD_WIDTH**-0.5
        self.qkv = self.form.linear(
            channels, 3 * channels, reads=Axis.IN, writes=Axis.INNER, row_scale=per_head.repeat(self.heads)
        )
        self.proj = self.form.linear(channels, channels, reads=Axis.INNER, writes=Axis.OUT, last=True)
        self.kept = None if block.kept_tokens == block.tokens else block.kept_tokens
        self.mlp = MLP(block, self.form if self.kept is None else Rows(block.height, block.width))
        self.drop = DropPath()
        if self.kept is not None:
            self.order = TokenOrder(tokens=block.tokens, kept=self.kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map in the layout that the block gives."""
        images = len(x)
        x = self.form.enter(x, self.block.layouts[0])
        mixed, weights = self.attend(self.qkv(x))
        x = x + self.drop(self.proj(mixed), images)
        if self.kept is None:
            return self.form.leave(x + self.drop(self.mlp(x), images))
        rows = to_rows(self.form.leave(x), self.block.gives)
        # Two means of one axis each: ONNX Runtime takes ten times as long for both axes at once.
        tokens = self._sparse_mlp(rows, received=weights.mean(dim=2).mean(dim=1), kept=self.order.now)
        return self.form.leave(self.form.enter(tokens, Layout.TOKENS))

    def attend(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed values in the block's form and the attention weights (B, heads, N, N): query, key."""
        query, key, value = torch.split(self.form.heads(qkv, self.heads), HEAD_WIDTH, dim=-1)
        weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.form.join(weights @ value), weights

    def _sparse_mlp(self, x: Tensor, *, received: Tensor, kept: int) -> Tensor:
        """Run the MLP on the `kept` rows with the highest received attention (B, N), all in one: (B, N, C)."""
        tokens = self.block.tokens
        order: Tensor = self.order(received)
        ordered = _take(x, order).view(-1, tokens, x.shape[1])
        best, rest = torch.split(ordered, [kept, tokens - kept], dim=1)
        rows = best.reshape(-1, x.shape[1])
        mixed = torch.cat(((rows + self.drop(self.mlp(rows), len(order))).view(best.shape), rest), dim=1)
        # Top-k of the negated order sorts it: the inverse permutation, without a scatter.
        back = (-order).topk(tokens, dim=1).indices
        return _take(mixed.flatten(0, 1), back).view(mixed.shape)


class TokenOrder(nn.Module):
    """Tokens by the attention they receive, most first: (B, N) -> (B, N); the first `kept` are the chosen ones.

    Attributes:
        sparsity: how much of the sparsity holds while training, from 0 (all tokens are chosen) to 1.
    """

    def __init__(self, *, tokens: int, kept: int) -> None:
        super().__init__()
        self.tokens, self.kept, self.sparsity = tokens, kept, 1.0

    @property
    def now(self) -> int:
        """Tokens chosen now."""
        return self.tokens - round(self.sparsity * (self.tokens - self.kept)) if self.training else self.kept

    def forward(self, received: Tensor) -> Tensor:
        """Sort the places of the tokens."""
        return received.topk(received.shape[1], dim=1).indices


def set_sparsity(module: nn.Module, share: float) -> None:
    """Have the sparse attention of a module leave out a share (0 to 1) of what it will leave out once deployed."""
    for order in token_orders(module):
        order.sparsity = share


def token_orders(module: nn.Module) -> list[TokenOrder]:
    """Return what chooses the tokens in the sparse attention of a module."""
    return [part for part in module.modules() if isinstance(part, TokenOrder)]


def faded_sparsity(done: float) -> float:
    """Return how much of the sparsity holds when a share of a training is done, 0 to 1: half a cosine (spec 2)."""
    return 0.5 - 0.5 * math.cos(math.pi * done)


def _take(rows: Tensor, order: Tensor) -> Tensor:
    """Reorder the rows (B*N, C) of each map by order (B, N)."""
    batch, tokens = order.shape
    starts = torch.arange(batch, device=rows.device)[:, None] * tokens
    return rows.index_select(0, (order + starts).flatten())
