"""For the fork server of `multiprocessing`, which imports this module: SIGTERM to the whole process group does not end it.

It ends with the program that has started it, and until then that program's processes can end as they should. The processes that it forks
have the default action of SIGTERM again.
"""

import signal
import sys

from socketkit._system import signals

if any("multiprocessing.forkserver" in each for each in sys.orig_argv):  # in any other process, importing it changes nothing
    signals.ignore(signal.SIGTERM)
