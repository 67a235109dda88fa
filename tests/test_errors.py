"""The errors as values: they keep their facts when they are copied, pickled and shown."""

import copy
import pickle

import pytest

from socketkit import errors

FAULT = errors.Fault("servers.echo", "is wrong")
EXAMPLES = [
    errors.ConfigError((FAULT,)),
    errors.UnknownPartError("layer", "tsl", ("tls",), ("a plugin is broken",)),
    errors.ClashError("layer", "tls", "one", "another"),
    errors.PluginError("plugin", "distribution", "reason"),
    errors.IncompatibleError("part", "reason", "remedy"),
    errors.HandlerError("handler", "reason"),
    errors.ListenError(98, "tcp://localhost:1", "reason", "remedy"),
    errors.AlreadyServingError(),
    errors.LineTooLongError(80),
    errors.StalledError(2.5),
    errors.UpgradeError("reason"),
    errors.BootError(2, "exit code 1"),
    errors.PrivilegeError("nobody", "reason", "remedy"),
]


def test_every_error_has_an_example():
    public = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.SocketkitError)}
    assert public - {errors.SocketkitError} == {type(each) for each in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "deep", "pickle"]
)
def test_a_copy_of_an_error_has_the_same_facts(error, copied):
    other = copied(error)
    assert type(other) is type(error)
    assert (str(other), repr(other), vars(other), other.args) == (str(error), repr(error), vars(error), error.args)
    assert other != error  # as with every exception


def test_an_error_shows_its_facts_by_name():
    assert repr(errors.HandlerError("h", "r")) == "HandlerError(handler='h', reason='r')"
    assert errors.HandlerError(handler="h", reason="r").args == ("h", "r")


def test_a_fault_is_a_value_that_cannot_be_changed():
    assert errors.Fault("servers.echo", "is wrong") == FAULT != errors.Fault("", "is wrong")
    assert {FAULT, pickle.loads(pickle.dumps(FAULT)), copy.copy(FAULT)} == {FAULT}
    assert repr(FAULT) == "Fault(key='servers.echo', message='is wrong')"
    with pytest.raises(AttributeError):
        FAULT.key = "servers.other"
    with pytest.raises(AttributeError):
        del FAULT.key
