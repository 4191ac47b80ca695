"""Layers with a tensor that has no range - zeros, or what a format takes for zero - stay float."""

import onnx
import pytest
from conftest import NETS

DEAD = (
    NETS
    + """

def dead_weight():
    net = Tiny()
    with torch.no_grad():
        net.depthwise.weight.zero_()
    return net


def tiny_weight():
    net = Tiny()
    with torch.no_grad():
        net.depthwise.weight.mul_(1e-9)
    return net


class Small(Tiny):
    def forward(self, image):
        x = self.bn(self.conv(image)).relu()
        x = self.depthwise_bn(self.depthwise(x)).relu()
        return self.head(1e-10 * x.mean((2, 3))) * 1e10


def tiny_input():
    return Small()
"""
)
CASES = {
    "dead_weight": ("depthwise", "depthwise.weight"),
    "tiny_weight": ("depthwise", "depthwise.weight"),
    "tiny_input": ("head", "head.input"),
}


@pytest.mark.parametrize("net", CASES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["calibrated", "dynamic"])
def test_a_layer_with_a_tensor_without_a_range_stays_float_as_a_whole(project, net, dynamic):
    layer, site = CASES[net]
    if dynamic and site.endswith("input"):
        pytest.skip("its range is found at run time")
    project.write("nets.py", DEAD)
    rule = {"match": layer, "input": {"per_tensor": {"dynamic": True}}}
    project.recipe(
        model={"callable": f"nets.py:{net}"},
        rules=[rule] if dynamic else [],
        on_unsupported="error",
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    variant = project.report().variants[-1]
    assert variant.zero_sites == [site]
    assert variant.quantized_sites == 4  # weight and input of the two other layers
    told = "saw only zeros, or values up to 2^-24, which modelopt takes for zero, so their layers"
    assert f"{told} stay float: {site}" in " ".join(done.stdout.split())
    model = onnx.load_from_string(project.onnx())
    products = {node.name.split("/")[0]: node for node in model.graph.node
                if node.op_type in ("Conv", "Gemm", "MatMul")}  # fmt: skip
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    quantized = {
        name: [made_by.get(value) for value in node.input[:2]] for name, node in products.items()
    }
    assert "DequantizeLinear" not in quantized.pop(layer)
    assert all("DequantizeLinear" in makers for makers in quantized.values()) and quantized
