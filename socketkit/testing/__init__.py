"""Tools for testing servers: fault injection, and checks for resources that a test leaves behind. Not for production."""

from socketkit.testing.chaos import Blackhole, ChaosProxy, Cut, Delay, Drip, HalfClose, Reset
from socketkit.testing.clock import FakeClock
from socketkit.testing.faulty import Delegate, Faults, FaultyTransport
from socketkit.testing.leaks import Account
from socketkit.testing.stepping import Stepping

__all__ = ["Account", "Delegate", "FakeClock", "Faults", "FaultyTransport", "Stepping"]
__all__ += ["Blackhole", "ChaosProxy", "Cut", "Delay", "Drip", "HalfClose", "Reset"]
