"""A model from a recipe: what is loaded, what is refused and what its key depends on."""

import logging
import pickle
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from granplugin.errors import DataError, ModelError
from granplugin.network import models
from granplugin.network.models import device, input_names, model_key
from granplugin.network.trace import trace
from granplugin.network.weights import load_weights
from granplugin.recipe.callables import resolve
from granplugin.recipe.load import load_recipe
from granplugin.recipe.model import CallableModel
from granplugin.recipe.strict import Target


def build_model(spec, where):
    """The model, without what it may have come with."""
    return models.build_model(spec, where)[0]


CPU = torch.device("cpu")
NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.conv = nn.Conv2d(1, width, 3)
            self.bn = nn.BatchNorm2d(width)
            self.act = torch.relu

        def extra_repr(self):
            return str(self.act) + str(lambda x: x)

        def forward(self, image):
            return self.act(self.bn(self.conv(image)))

    def fails(width):
        raise ValueError("width must be even\\nand more")

    def number():
        return 3

    THREE = 3
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "net.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def net(write):
    path = write(NET)
    return lambda name="Net", weights=None, **args: CallableModel(
        callable=Target(path=path, name=name), args=args, weights=weights
    )


def message(call, *args, error=ModelError) -> str:
    with pytest.raises(error) as caught:
        call(*args)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_model_comes_in_eval_mode_with_its_arguments(net):
    model = build_model(net(width=6), CPU)
    assert not any(module.training for module in model.modules())
    assert model.conv.out_channels == 6


def test_random_weights_are_the_same_each_time_and_leave_the_callers_random_numbers(net):
    torch.manual_seed(5)
    first = build_model(net(), CPU)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first.conv.weight, build_model(net(), CPU).conv.weight)


def test_an_installed_callable_resolves():
    assert resolve(Target(module="torch.nn", name="Linear")) is nn.Linear


def test_a_files_folder_is_on_the_path_only_during_import(write):
    write("VALUE = 7", "neighbour_of_net.py")
    path = write("import neighbour_of_net\ndef value(): return neighbour_of_net.VALUE")
    before = list(sys.path)
    assert resolve(Target(path=path, name="value"))() == 7
    assert sys.path == before


def test_neighbours_of_the_same_name_in_two_folders_are_not_mixed_up(write):
    values = []
    for folder in ("a", "b"):
        write(f"NAME = {folder!r}", f"{folder}/shared_name.py")
        path = write("import shared_name\ndef name(): return shared_name.NAME", f"{folder}/net.py")
        values.append(resolve(Target(path=path, name="name"))())
    assert values == ["a", "b"]


def test_an_edit_is_seen_by_the_next_resolve(write):
    for value in (1, 2):
        target = Target(path=write(f"def value(): return {value}"), name="value")
        assert resolve(target)() == value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Nett", "net.py:Nett: net.py has no 'Nett'; did you mean 'Net'?"),
        ("zzz", "net.py:zzz: net.py has no 'zzz'; known: Net, fails, number"),
        ("THREE", "net.py:THREE: 'THREE' is int, not a callable"),
    ],
)
def test_a_name_that_a_file_lacks_is_an_error(net, name, said):
    assert message(build_model, net(name), CPU) == said


def test_a_file_that_does_not_exist_is_an_error_of_the_wanted_class(tmp_path):
    target = Target(path=tmp_path / "gone.py", name="x")
    said = message(lambda: resolve(target, DataError), error=DataError)
    assert said == f"gone.py:x: no such file: {tmp_path / 'gone.py'}"


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (
            "no_such_module",
            "x",
            "no_such_module:x: there is no module 'no_such_module'; install it",
        ),
        ("torch.no_such", "x", "torch.no_such:x: there is no module 'torch.no_such'; install it"),
        ("torch.nn", "Linaer", "torch.nn has no 'Linaer'; did you mean 'Linear'?"),
        ("torch.nn", "zzzzzz", "torch.nn:zzzzzz: torch.nn has no 'zzzzzz'"),
    ],
)
def test_an_installed_callable_that_is_not_there_is_an_error(module, name, said):
    assert message(resolve, Target(module=module, name=name)).endswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import torch\n1 / 0",
            "importing it raised ZeroDivisionError: division by zero (net.py:2)",
        ),
        ("def f(:\n  pass", "importing it raised SyntaxError: invalid syntax (net.py:1)"),
        ("import not_there", "raised ModuleNotFoundError: No module named 'not_there' (net.py:1)"),
        ("raise SystemExit(1)", "importing it raised SystemExit: 1 (net.py:1)"),
        ("assert False", "importing it raised AssertionError (net.py:1)"),
    ],
)
def test_a_file_that_raises_on_import_is_an_error_with_its_line(write, text, said):
    assert message(resolve, Target(path=write(text), name="f")).endswith(said)


def test_a_callable_that_raises_is_named_with_its_line_and_its_traceback_is_logged(net, caplog):
    spec = net("fails", width=3)
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError) as caught:
        build_model(spec, CPU)
    line = next(i for i, text in enumerate(NET.split("\n")) if "raise ValueError" in text)
    assert str(caught.value) == (
        f"net.py:fails: calling it raised ValueError: width must be even (net.py:{line + 1})"
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert "Traceback" in caplog.text and "and more" in caplog.text


def test_wrong_arguments_are_an_error(net):
    said = message(build_model, net("number", widht=3), CPU)
    assert said == (
        "net.py:number: calling it raised TypeError: "
        "number() got an unexpected keyword argument 'widht'"
    )


def test_what_is_not_a_module_is_an_error(net):
    said = message(build_model, net("number"), CPU)
    assert said == "net.py:number: it returned int, not a torch.nn.Module"


UNSUITABLE = {
    "scripted": ("torch.jit.trace(Net(), torch.ones(1, 1, 8, 8))",
                 "it is a TorchScript module, which cannot be quantized; return the nn.Module"),
    "a scripted part": ("nn.Sequential(nn.Conv2d(1, 4, 3), torch.jit.script(nn.ReLU()))",
                        "its '1' is a TorchScript module, which cannot be quantized"),
    "float16": ("Net().half()", "its parameter 'conv.weight' is float16; load it as float32 "
                                "(model.float()), and write precision: fp16"),
    "bfloat16": ("nn.Sequential(nn.Conv2d(1, 4, 3), Net().bfloat16())",
                 "its parameter '1.conv.weight' is bfloat16; load it as float32 (model.float()), "
                 "and write precision: bf16"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_module_that_cannot_be_quantized_is_refused_with_the_way_out(write, case):
    made, wanted = UNSUITABLE[case]
    path = write(
        NET
        + f"""
    def made():
        return {made}
    """
    )
    said = message(build_model, CallableModel(callable=Target(path=path, name="made")), CPU)
    assert said.startswith("net.py:made: ") and wanted in said


WRAPPED = {
    "parallel": "nn.DataParallel(Net())",
    "compiled": "torch.compile(Net())",
    "both": "nn.DataParallel(torch.compile(Net()))",
    "in place": "in_place(Net())",
    "a part": "part(Net())",
}


@pytest.mark.parametrize("case", WRAPPED)
def test_what_only_wraps_a_module_is_taken_off(write, tmp_path, case):
    path = write(
        NET
        + f"""
    def in_place(net):
        net.compile()
        return net

    def part(net):
        net.conv = nn.DataParallel(torch.compile(net.conv))
        return net

    def made():
        return {WRAPPED[case]}
    """
    )
    of = [CallableModel(callable=Target(path=path, name=name)) for name in ("Net", "made")]
    plain, found = (build_model(spec, CPU) for spec in of)
    assert [(n, type(m).__name__) for n, m in found.named_modules()] == [
        (n, type(m).__name__) for n, m in plain.named_modules()
    ]
    image = torch.ones(2, 1, 8, 8)
    assert torch.equal(found(image), plain(image))
    assert [layer.name for layer in trace(found, image).layers] == ["conv", "bn"]

    # A checkpoint has the names of the model that it was saved from.
    wrapped = resolve(of[1].callable)()
    torch.save(wrapped.state_dict(), tmp_path / "saved.pt")
    again = build_model(of[1].model_copy(update={"weights": tmp_path / "saved.pt"}), CPU)
    assert torch.equal(again.conv.weight, next(wrapped.parameters()))


@pytest.mark.parametrize("how", ["safetensors", "pt", "old pt", "in state_dict", "in any key"])
def test_weights_are_loaded_from(net, tmp_path, how):
    trained = build_model(net(), CPU)
    with torch.no_grad():
        trained.conv.weight.add_(1)
    state = trained.state_dict()
    path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pt")
    if how == "safetensors":
        save_file(state, path)
    elif how == "old pt":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        optimizer = torch.optim.SGD(trained.parameters(), 0.1).state_dict()
        wrapped = {
            "pt": state,
            "in state_dict": {"epoch": 3, "state_dict": state, "optimizer": optimizer},
            "in any key": {"net": state, "epoch": 3},
        }
        torch.save(wrapped[how], path)
    loaded = build_model(net(weights=path), CPU)
    assert torch.equal(loaded.conv.weight, trained.conv.weight)


def test_tied_weights_are_loaded_from_one_of_their_names(write, tmp_path):
    path = write("""
        from torch import nn
        def tied():
            model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
            model[1].weight = model[0].weight
            return model
    """)
    save_file({"0.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    spec = CallableModel(
        callable=Target(path=path, name="tied"), weights=tmp_path / "w.safetensors"
    )
    assert torch.equal(build_model(spec, CPU)[1].weight, torch.eye(3))


def test_weights_that_do_not_fit_are_listed(net, tmp_path):
    state = build_model(net(), CPU).state_dict()
    state = {name: tensor for name, tensor in state.items() if "bn" not in name}
    state |= {"head.weight": torch.ones(2), "conv.bias": torch.ones(9)}
    save_file(state, path := tmp_path / "w.safetensors")
    assert message(build_model, net(weights=path), CPU) == (
        f"{path}: the weights do not fit the model; "
        "missing: bn.weight, bn.bias, bn.running_mean and 1 more; unexpected: head.weight; "
        "of another shape: conv.bias ([9] in the file, [4] in the model)"
    )


def _pickled(path):
    torch.save({"conv.weight": torch.ones(3), "config": Path("x")}, path)


def _two_sets(path):
    torch.save({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, path)


def _damaged(path):
    torch.save({"a": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("suffix", "make", "said"),
    [
        (".pt", lambda path: None, "no such file"),
        (".safetensors", lambda path: path.write_bytes(b"x" * 99), "this is no safetensors file"),
        (".pt", lambda path: path.write_bytes(b"x" * 99), "this is no file of weights"),
        (".pt", lambda path: path.write_bytes(b""), "it is damaged"),
        (".pt", _damaged, "it is damaged, or not written by torch.save"),
        (".pt", lambda path: torch.save([1, 2], path), "it holds no weights"),
        (".pt", _two_sets, "it holds several sets of weights (model, ema)"),
        (".pt", _pickled, "it holds Python objects besides tensors"),
    ],
)
def test_a_file_that_is_no_plain_set_of_weights_is_refused(net, tmp_path, suffix, make, said):
    path = tmp_path / f"w{suffix}"
    make(path)
    assert message(build_model, net(weights=path), CPU).startswith(f"{path}: {said}")


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))]
)
def test_a_checkpoint_never_runs_code_and_the_message_names_the_way_out(net, tmp_path, save):
    save({"w": _Touch(tmp_path / "ran")}, path := tmp_path / "w.pt")
    said = message(build_model, net(weights=path), CPU)
    assert said.endswith("save the model's state_dict as .safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_the_first_parameter_that_is_not_finite_is_named(net, tmp_path, value, kind):
    state = build_model(net(), CPU).state_dict()
    state["conv.bias"][2] = state["bn.weight"][0] = value
    save_file(state, path := tmp_path / "w.safetensors")
    said = message(build_model, net(weights=path), CPU)
    assert said == f"{path}: parameter 'conv.bias' holds {kind}; use finite weights"


def test_a_buffer_may_hold_infinity_but_not_nan(write):
    path = write("""
        import torch
        from torch import nn
        def masked(value):
            model = nn.Identity()
            model.register_buffer("mask", torch.tensor([0.0, float(value)]))
            return model
    """)
    target = Target(path=path, name="masked")
    assert (
        build_model(CallableModel(callable=target, args={"value": "-inf"}), CPU).mask.isinf().any()
    )
    said = message(build_model, CallableModel(callable=target, args={"value": "nan"}), CPU)
    assert "buffer 'mask' holds NaN" in said


@pytest.mark.parametrize("layer", ["nn.LazyLinear(3)", "nn.Linear(2, 3, device='meta')"])
def test_parameters_without_values_are_an_error(write, layer):
    path = write(f"from torch import nn\ndef net(): return {layer}")
    said = message(build_model, CallableModel(callable=Target(path=path, name="net")), CPU)
    assert said == "net.py:net: parameter 'weight' has no values; initialize the model"


def test_input_names_are_what_forward_takes_and_unknown_where_it_takes_any():
    class Model(nn.Module):
        def forward(self, image, mask=None, *, scale=1):
            return image

    class Wrapper(nn.Module):
        def forward(self, image, **kwargs):
            return image

    assert input_names(Model()) == ("image", "mask", "scale")
    assert input_names(Wrapper()) == ()


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device("auto").type == kind
    assert device("cpu") == CPU
    assert message(device, "cuda").endswith("sees no GPU; write cpu or auto")


def key(spec: CallableModel) -> str:
    return model_key(spec, build_model(spec, CPU))


def test_the_key_is_the_same_in_another_process(net, forks):
    spec = net()
    code = (
        "import torch, sys; from granplugin.network.models import build_model, model_key;"
        "from granplugin.recipe.model import CallableModel;"
        "spec = CallableModel.model_validate_json(sys.argv[1], strict=False);"
        "print(model_key(spec, build_model(spec, torch.device('cpu'))[0]))"
    )
    text = f'{{"callable": "{spec.callable.path}:Net"}}'
    run = forks.run(["-c", code, text])
    assert run.stdout.strip() == key(spec), run.stderr


def test_the_key_does_not_depend_on_where_files_are(net, write, tmp_path):
    trained = build_model(net(), CPU).state_dict()
    save_file(trained, tmp_path / "a.safetensors")
    torch.save(trained, tmp_path / "b.pt")
    moved = CallableModel(callable=Target(path=write(NET, "moved/other.py"), name="Net"))
    weights = (None, tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert {key(moved), *(key(net(weights=path)) for path in weights)} == {key(net())}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.conv.weight.data[0].neg_(),
        lambda model: model.bn.running_var.mul_(2),
        lambda model: setattr(model.bn, "eps", 1e-3),
        lambda model: setattr(model, "act", nn.ReLU()),
        lambda model: model.half(),
    ],
)
def test_the_key_changes_with_values_and_structure(net, change):
    spec = net()
    model = build_model(spec, CPU)
    before = model_key(spec, model)
    change(model)
    assert model_key(spec, model) != before


def test_the_key_changes_with_arguments_and_with_any_source_the_model_is_made_of(write):
    helper = "def scaled(x): return x * 2"
    write(helper, "helper_of_net.py")
    write("import helper_of_net\ndef noise(): pass", "unrelated.py")
    text = """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, hint=0):
                super().__init__()
            def forward(self, x):
                from helper_of_net import scaled
                return scaled(x)
    """
    path = write(text)

    def now(**args):
        return key(CallableModel(callable=Target(path=path, name="Net"), args=args))

    keys = [now(), now(hint=1)]
    write(text.replace("scaled(x)", "-scaled(x)"))
    keys.append(now())
    write(helper + " + 1", "helper_of_net.py")
    keys.append(now())
    assert len(set(keys)) == 4
    write("changed = True", "unrelated.py")
    assert now() == keys[-1]


def test_of_several_sets_of_weights_one_is_asked_for_and_a_prefix_is_found(tmp_path):
    net = nn.Linear(2, 2)
    wrapped = {f"module.{name}": values for name, values in net.state_dict().items()}
    path = tmp_path / "w.pt"
    torch.save({"model": wrapped, "ema": {"shadow": net.state_dict()}, "epoch": 3}, path)
    with pytest.raises(
        ModelError, match=r"\(model, ema.shadow\); say which: state_dict_key: model"
    ):
        load_weights(net, path)
    load_weights(net, path, "ema.shadow")
    with pytest.raises(ModelError, match="no set of weights 'ema'; did you mean|known: model"):
        load_weights(net, path, "ema")
    with pytest.raises(ModelError, match=r"begin with 'module\.': write strip_prefix: 'module\.'"):
        load_weights(net, path, "model")
    load_weights(net, path, "model", "module.")
    with pytest.raises(ModelError, match="is no prefix of weight, bias"):
        load_weights(net, path, "ema.shadow", "module.")


def test_a_module_beside_the_recipe_is_its_file(tmp_path):
    (tmp_path / "my_own_nets.py").write_text("from torch.nn import Identity as Net\n")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: {callable: my_own_nets:Net}\n"
        "data: {calibration: {callable: my_own_nets:data}}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    assert recipe.model.callable.path == tmp_path / "my_own_nets.py"
    assert recipe.data.calibration.callable.path == tmp_path / "my_own_nets.py"
