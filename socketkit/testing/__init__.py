"""What tests of servers need: faults on order, and an account of what a test leaves behind. Nothing here is for production."""

from socketkit.testing.chaos import Blackhole, ChaosProxy, Cut, Delay, Drip, HalfClose, Reset
from socketkit.testing.clock import FakeClock
from socketkit.testing.faulty import Delegate, Faults, FaultyTransport
from socketkit.testing.leaks import Account

__all__ = [
    "Account",
    "Blackhole",
    "ChaosProxy",
    "Cut",
    "Delay",
    "Delegate",
    "Drip",
    "FakeClock",
    "Faults",
    "FaultyTransport",
    "HalfClose",
    "Reset",
]
