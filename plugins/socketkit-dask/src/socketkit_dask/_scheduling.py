"""What the scheduler runs. It travels by value, so that the scheduler's machine needs neither this package nor socketkit."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin


def make_agent(agent: str, owner: str) -> SchedulerPlugin:
    """Return a plugin for the scheduler, with this name. It serves the client `owner`, and removes itself when that leaves.

    The class is made in a function because cloudpickle sends the code only of what cannot be imported by its name.
    """

    class Agent(SchedulerPlugin):
        name = agent

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler
            scheduler.handlers[self.name] = self.load

        def load(self) -> tuple[int, int]:
            """Return the worker threads that take tasks, and the unfinished tasks of other clients.

            It takes time proportional to the workers and to this client's own tasks.
            """
            scheduler = self.scheduler
            threads = sum(worker.nthreads for worker in scheduler.running)  # not of workers that are paused or leave
            tasks = len(scheduler.queued) + len(scheduler.unrunnable)
            tasks += sum(len(worker.processing) for worker in scheduler.workers.values())
            known = scheduler.clients.get(owner)
            own = sum(task.state in {"processing", "queued", "no-worker"} for task in known.wants_what) if known else 0
            return threads, tasks - own

        def update_graph(self, scheduler: Any, *, client: str, tasks: list[Any], **_facts: Any) -> None:
            """Have a task of this client fail as soon as its worker dies, whatever `allowed-failures` is: the client tries again.

            Otherwise a message that kills its worker would kill several before anybody knows.
            """
            if client == owner:
                for key in tasks:
                    scheduler.tasks[key].suspicious = scheduler.allowed_failures

        def remove_client(self, scheduler: Any, client: str) -> None:
            if client == owner and self.name in scheduler.plugins:
                scheduler.handlers.pop(self.name, None)
                scheduler.remove_plugin(name=self.name)

    return Agent()
