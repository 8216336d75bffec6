"Numbers on the command line are what people write: in every setting of every method and in every numeric option."

import pytest

from hpt_nb.cli import main, parser
from hpt_nb.experiments import REGISTRY, method_config
from hpt_nb.store import InputError

SETTINGS = [
    (method, name, default)
    for method, how in REGISTRY.items()
    for name, default in vars(how.config).items()
    if isinstance(default, (int, float)) and not isinstance(default, bool)
]
NOT_WRITTEN = ("4_0", "1_0e2", "0x10", "forty", "")


@pytest.mark.parametrize("text", NOT_WRITTEN)
def test_a_setting_is_a_number_as_people_write_it(text):
    assert len(SETTINGS) > 50
    for method, name, _ in SETTINGS:
        with pytest.raises(InputError, match=f"^{name}={text!r}; need a value like"):
            method_config(method, **{name: text})


def test_what_people_write_is_read_as_it_was():
    for method, name, default in SETTINGS:
        assert getattr(method_config(method, **{name: f" {default!r} "})[1], name) == default
    assert method_config("pez", lr="3e-2")[1].lr == 0.03 and method_config("pez", lr=".5")[1].lr == 0.5


def numeric_options():
    "(command, option) of each option whose text is read as a number."
    commands = next(a for a in parser()._actions if isinstance(a.choices, dict)).choices
    for command, p in commands.items():
        for action in p._actions:
            if action.type is not None and action.option_strings:
                yield command, action.option_strings[0]


def test_an_option_is_a_number_as_people_write_it(capsys):
    options = list(numeric_options())
    assert len(options) > 25 and ("tune", "--lr") in options and ("effects", "--seed") in options
    for command, option in options:
        for text in NOT_WRITTEN:
            assert main([command, f"{option}={text}"]) == 2
            err = capsys.readouterr().err
            assert err.startswith(f"hpt: argument {option}: {text!r}; need a") and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "argv, says",
    [
        ("tune m --task t --out o --seeds 1_0", "--seeds '1_0'; need whole numbers"),
        ("tune m --task t --out o --set steps=4_0", "steps='4_0'; need a value like"),
        ("tune m --task t --out o --set lr=0_1", "lr='0_1'; need a value like"),
        ("transferable --task t --models a b --seeds 1_0", "--seeds '1_0'; need whole numbers"),
        ("transferable --task t --models a b --set batch=1_6", "batch='1_6'; need a value like"),
        ("run offline --dry-run --rates 3_00,40", "--rates '3_00,40'; need two numbers"),
    ],
)
def test_lists_of_numbers_too(argv, says, capsys):
    assert main(argv.split()) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
