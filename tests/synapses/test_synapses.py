"""State beside parameters: created, placed, grown, saved, refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from cl_callbacks.synapses.state import Synapses, parameters_by_name, plain_name

FIELDS = {"importance": "zeros", "anchor": "parameter"}


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def filled(model: nn.Module) -> Synapses:
    synapses = Synapses(FIELDS)
    view = synapses.place(named(model), list(named(model)))
    for t in view["importance"]:
        t.fill_(3.0)
    return synapses


def test_new_synapses_get_their_fill() -> None:
    model = nn.Linear(2, 3)
    view = Synapses(FIELDS).place(named(model), ["weight"])
    assert view.names == ["weight"]
    assert torch.equal(view["importance"][0], torch.zeros(3, 2))
    assert torch.equal(view["anchor"][0], model.weight)
    assert view["anchor"][0].data_ptr() != model.weight.data_ptr()
    assert not view["anchor"][0].requires_grad


def test_dtype_of_the_state() -> None:
    for given, parameter, expected in [
        (None, torch.bfloat16, torch.float32),
        (None, torch.float64, torch.float64),
        (torch.bfloat16, torch.float32, torch.bfloat16),
    ]:
        model = nn.Linear(2, 3).to(parameter)
        view = Synapses(FIELDS, given).place(named(model), ["weight"])
        assert view["anchor"][0].dtype is expected


def test_placing_again_keeps_the_very_tensors() -> None:
    model = nn.Linear(2, 3)
    synapses = filled(model)
    first = synapses.view
    second = synapses.place(named(model), first.names)
    assert all(a is b for a, b in zip(first["importance"], second["importance"], strict=True))


def test_loaded_state_is_a_copy() -> None:
    model = nn.Linear(2, 3)
    source, target = filled(model), Synapses(FIELDS)
    target.load_state_dict(source.state_dict())
    view = target.place(named(model), source.view.names)
    assert torch.equal(view["importance"][0], source.view["importance"][0])
    view["importance"][0].zero_()
    assert (source.view["importance"][0] == 3.0).all()


def test_a_grown_head_keeps_its_rows() -> None:
    synapses = filled(nn.Linear(2, 3))
    grown = nn.Linear(2, 5)
    view = synapses.place(named(grown), ["weight", "bias"])
    assert view["importance"][0][:3].eq(3.0).all()
    assert view["importance"][0][3:].eq(0.0).all()
    assert torch.equal(view["anchor"][1][3:], grown.bias[3:])


def test_state_of_unselected_parameters_is_kept() -> None:
    model = nn.Linear(2, 3)
    synapses = filled(model)
    assert synapses.place(named(model), ["weight"]).names == ["weight"]
    assert (synapses.place(named(model), ["weight", "bias"])["importance"][1] == 3.0).all()


def test_misfits_are_listed() -> None:
    synapses = filled(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)))
    other = nn.ModuleDict({"0": nn.Linear(2, 3), "2": nn.Linear(1, 1)})
    other["0"].weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError) as error:
        synapses.place(named(other), ["0.weight"])
    said = str(error.value)
    assert "0.weight: state (3, 2), parameter (2, 2)" in said
    assert "not in the model: ['1.weight', '1.bias']" in said
    assert "without state: ['2.weight', '2.bias']" in said


def test_vanished_parameters_need_strict_false() -> None:
    two, one = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="strict=False"):
        filled(two).place(named(one), ["0.weight"])
    synapses = Synapses(FIELDS, strict=False)
    synapses.load_state_dict(filled(two).state_dict())
    assert (synapses.place(named(one), ["0.weight"])["importance"][0] == 3.0).all()
    assert set(synapses.state_dict()["importance"]) == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.net.weight", "module.net.weight"),  # an attribute of the user's
        ("net.my_orig_mod.weight", "net.my_orig_mod.weight"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module.0.weight", "net.0.weight"),
        ("net._orig_mod.module.weight", "net.module.weight"),
        ("net._orig_mod._orig_mod.weight", "net.weight"),
    ],
)
def test_wrappers_leave_no_trace_in_names(wrapped: str, plain: str) -> None:
    assert plain_name(wrapped) == plain


def test_a_parameter_that_is_renamed_keeps_its_name_and_another_does_not_take_it() -> None:
    layer = nn.Linear(2, 3)
    view = filled(layer).view
    weight, bias = layer.weight, layer.bias
    prune.identity(layer, "weight")
    assert list(parameters_by_name(layer)) == ["bias", "weight_orig"]
    found = parameters_by_name(layer, view)
    assert list(found) == ["bias", "weight"]
    assert found["weight"] is weight
    prune.remove(layer, "weight")
    layer.old, layer.weight = layer.weight, nn.Parameter(torch.ones(3, 2))
    found = parameters_by_name(layer, view)
    assert found == {"bias": bias, "weight": layer.weight, "old": weight}


def test_two_parameters_are_not_one() -> None:
    layer = nn.Linear(2, 3)
    layer.inner = nn.Module()
    layer.inner._orig_mod = nn.Linear(2, 3)
    layer.inner.bias = nn.Parameter(torch.ones(3))
    with pytest.raises(
        ValueError, match=r"inner\.bias and inner\._orig_mod\.bias .* both are called inner\.bias"
    ):
        parameters_by_name(layer)
