"""Make small files of torch of every kind, and what torch gives; run by an interpreter that has torch, in an empty folder."""

import json
from pathlib import Path

import numpy
import torch
from monai.networks.nets import UNet


class Listing(torch.nn.Module):
    """Gives two outputs, in a list."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(1, 3, 1)

    def forward(self, batch):
        return [self.first(batch), self.second(batch)]


class Fixed(torch.nn.Module):
    """Takes a batch of one alone."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv3d(1, 2, 1)

    def forward(self, batch):
        return self.first(batch).reshape(1, 2, 16, 16, 16)


def safetensors(state):
    """Return the bytes of a safetensors file, by the format's description."""
    header, data = {}, b""
    for name, value in state.items():
        content = value.contiguous().numpy().tobytes()
        word = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        header[name] = {
            "dtype": word,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


torch.set_num_threads(1)
torch.manual_seed(3)
net = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,)).eval()
two = Listing().eval()
batch = torch.from_numpy(numpy.random.default_rng(5).normal(size=(3, 1, 16, 16, 16)).astype("f4"))
with torch.inference_mode():
    numpy.save("expected.npy", net(batch).numpy())
    numpy.save("second.npy", two(batch)[1].numpy())
state = net.state_dict()
prefixed = {f"module.{name}": value for name, value in state.items()}
short = {**state, next(iter(state)): next(iter(state.values()))[:1]}
torch.save(state, "weights.pt")
torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"model": prefixed, "epoch": 7, "best": numpy.float64(0.5)}, "checkpoint.pt")
torch.save(short, "short.pt")
torch.save(net, "whole.pt")
Path("net.safetensors").write_bytes(safetensors(state))
torch.jit.trace(net, batch).save("net.ts")
torch.jit.trace(Fixed().eval(), batch[:1]).save("fixed.ts")
free = ({0: torch.export.Dim.DYNAMIC},)
torch.export.save(torch.export.export(net, (batch,), dynamic_shapes=free), "net.pt2")
torch.export.save(torch.export.export(two, (batch,), dynamic_shapes=free), "two.pt2")
