"""The benchmark's own sums, its table and its page. Nothing here takes a time or starts a server."""

import json
import math
import re
import ssl
import xml.etree.ElementTree as ET

import pytest

from benchmarks import __main__, clients, figures, guard, report, rows, tools
from benchmarks.figures import Goal, Outcome
from benchmarks.servers import certificates

PROMISED = {
    "datagrams": {"≥ 25 x ThreadingUDPServer", "≥ 1.2 x UDPServer", "≥ 0.85 x bare loop"},
    "datagrams-sleepy": {"≥ 10 x UDPServer", "≥ 10 x ThreadingUDPServer"},
    "oneshot": {"≥ 5 x ThreadingTCPServer", "≥ 1.5 x uvloop", "≥ 0.8 x C epoll", "≤ 0.9 x uvloop"},
    "connection-loop": {"≥ 3 x ThreadingTCPServer"},
    "keepalive": {"≥ 2 x ThreadingTCPServer", "≥ 1 x uvloop", "≥ 0.9 x C epoll", "≤ 1 x uvloop"},
    "keepalive-threads": {"≥ 1.2 x ThreadingTCPServer"},
    "crowd-1000-threads": {"≥ 1.2 x ThreadingTCPServer"},
    "crowd-500": set(),
    "crowd-1000": {"≥ 1.2 x uvloop"},
    "crowd-4000": {"≥ 1.2 x uvloop"},
    "crowd-9000": set(),
    "http-keepalive": {"≥ 4 x ThreadingHTTPServer", "≥ 2 x cheroot"},
    "http-close": {"≥ 2 x ThreadingHTTPServer"},
    "prefork": {"≥ 8 x ForkingTCPServer"},
    "interpreters": {"≥ 0.9 x socketkit prefork", "≤ 0.6 x socketkit prefork"},
    "idle-connections": {"≤ 8192", "≤ 0", "≤ 50"},
    "tls-handshakes": {"≥ 0.9 x asyncio"},
    "tls-resumptions": set(),
    "tls-http-keepalive": {"≥ 1.5 x ThreadingHTTPServer, TLS in its threads"},
    "tls-keepalive": set(),
    "tls-silent-clients": {f"socketkit {name}: ≤ 5" for name in ("adaptive", "pool", "prefork")},
    "classic-udp": {"≥ 0.95 x UDPServer"},
    "classic-udp-threading": {"≥ 0.95 x ThreadingUDPServer"},
    "classic-tcp": {"≥ 0.95 x TCPServer"},
    "classic-tcp-threading": {"≥ 0.95 x ThreadingTCPServer"},
    "classic-keepalive-threading": {"≥ 0.95 x ThreadingTCPServer"},
    "classic-tcp-forking": {"≥ 0.95 x ForkingTCPServer"},
    "stop": {"≤ 50"},
    "idle": {"≤ 0"},
}
"""What the project has promised to reach, row by row: a goal that is given up or softened has to be given up here too."""


def test_the_table_has_every_promise_and_no_other():
    table = {row.name: {str(goal).replace(f"{goal.metric} ", "") for goal in row.goals} for row in rows.ROWS}
    assert table == PROMISED


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.name)
def test_a_goal_is_about_sides_that_the_row_has(row):
    assert row.subject.startswith("socketkit")
    assert {goal.than for goal in row.goals} - {None} <= set(row.sides) - {row.subject}
    assert {goal.side for goal in row.goals} - {None} <= set(row.sides)


def test_every_side_has_a_program(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "interpreter", lambda: "python")
    monkeypatch.setattr(rows, "compiled", lambda name: f"-m tests.benchmarks.servers.{name}")
    monkeypatch.setattr(rows, "web_folder", lambda: tmp_path)
    commands = [" ".join(side()) for row in rows.ROWS for side in row.sides.values()]
    modules = [re.search(r"-m (\S+)", command)[1] for command in commands]
    programs = {module.removeprefix("tests.benchmarks.servers.") for module in modules} - {"socketkit", "http.server"}
    assert programs == {path.stem for path in (tools.HERE / "servers").iterdir() if path.is_file()} - {
        "__init__",
        "handlers",
        "conversations",
        "certificates",
    }


def test_a_percentile_is_a_value_that_was_there():
    assert figures.percentile(range(1, 101), 0.99) == 99
    assert figures.percentile([5.0], 0.99) == 5.0
    assert figures.percentile([3, 1, 2], 0.5) == 2


def test_the_ratio_is_that_of_the_medians():
    assert figures.ratio([1, 30, 20], [10, 500, 1]) == 2.0
    assert figures.ratio([0, 0], [0]) == 1.0
    assert figures.ratio([1], [0]) == math.inf


def test_the_spread_is_a_share_of_the_median():
    assert figures.spread([90, 100, 120]) == pytest.approx(0.3)
    assert figures.spread([0, 0]) == 0.0


def test_readings_are_collected_by_metric():
    assert figures.collect([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == {"a": [1, 3], "b": [2, 4]}
    assert figures.collect([]) == {}


def test_a_goal_is_met_from_its_bound_on():
    assert Outcome(Goal("x", 2, "peer"), 2.0).met is True
    assert Outcome(Goal("x", 2, "peer"), 1.99).met is False
    assert Outcome(Goal("x", 2, at_most=True), 2.0).met is True
    assert Outcome(Goal("x", 2, at_most=True), 2.01).met is False
    assert Outcome(Goal("x", 2), None).met is None


def test_a_goal_is_not_met_by_what_the_client_could_not_measure():
    assert Outcome(Goal("x", 2, "peer"), 3.0, limited=True).met is None
    assert Outcome(Goal("x", 2, "peer"), 1.0, limited=True).met is False
    fast = {"ours": {"replies/s": [300], "client busy": [0.99]}, "peer": {"replies/s": [100], "client busy": [0.5, 0.95, 0.96]}}
    goals = [{"metric": "replies/s", "bound": 2, "than": "peer", "at_most": False}]
    [outcome] = figures.outcomes(result(goals=goals, sides=fast))
    assert (outcome.measured, outcome.limited) == (3.0, True)
    assert report.verdict(outcome) == "replies/s ≥ 2 x peer: at most 3.00 x, not known"
    fast["peer"]["client busy"] = [0.5, 0.6, 0.95]
    [outcome] = figures.outcomes(result(goals=goals, sides=fast))
    assert outcome.met is True  # that the client was at its limit with ours only makes us seem slower


def result(**changes):
    return {
        "name": "row",
        "work": "some work",
        "client": "some client -x",
        "metric": "replies/s",
        "subject": "ours",
        "goals": [
            {"metric": "replies/s", "bound": 2, "than": "<theirs>", "at_most": False},
            {"metric": "replies/s", "bound": 1, "than": "gone", "at_most": False},
            {"metric": "lag", "bound": 5, "than": None, "at_most": True},
        ],
        "when": "2001-02-03",
        "rounds": 3,
        "seconds": 1.0,
        "sides": {"ours": {"replies/s": [300, 500, 400], "lag": [7, 8, 9]}, "<theirs>": {"replies/s": [100, 110, 90]}},
        "skipped": {"gone": "it did not start"},
        **changes,
    }


def test_outcomes_are_of_the_medians_and_unknown_without_a_peer():
    assert [(outcome.measured, outcome.met) for outcome in figures.outcomes(result())] == [(4.0, True), (None, None), (8, False)]


def test_a_goal_may_be_that_of_another_side_than_the_first():
    goals = [{"metric": "replies/s", "bound": 100, "than": None, "at_most": True, "side": "<theirs>"}]
    [outcome] = figures.outcomes(result(goals=goals))
    assert (outcome.measured, outcome.met) == (100, True)
    assert report.verdict(outcome) == "<theirs>: replies/s ≤ 100: 100, met"


def test_the_page_names_the_sides_with_which_the_client_is_the_limit():
    sides = {"ours": {"replies/s": [300], "client busy": [0.5]}, "fast": {"replies/s": [900], "client busy": [0.95]}}
    assert "; the client is the limit with fast;" in report.rows_page({"rows": [result(sides=sides)]})
    assert "the limit with" not in report.rows_page({"rows": [result()]})


def printed(marks):
    """What openssl s_time prints, which is on more lines than this."""
    return f"Now timing\nstarting\n{marks}\n\n{len(marks)} connections in 0.53s; 4060.38 connections/user sec, bytes read 10\n"


def test_handshakes_of_the_wrong_kind_are_not_counted():
    assert clients._handshakes("new", printed("*" * 7)) == 7
    assert clients._handshakes("reuse", printed("r" * 7)) == 7
    with pytest.raises(clients.ClientError, match="3 of 5 handshakes reused a session"):
        clients._handshakes("reuse", printed("r*r*r"))
    with pytest.raises(clients.ClientError, match="1 of 5 handshakes reused a session"):
        clients._handshakes("new", printed("****r"))


def test_the_benchmark_s_certificate_is_one_file_that_clients_and_servers_load():
    file = tools.certificate()
    assert tools.certificate() is file
    server = certificates.context(file)
    assert server.cert_store_stats()["x509"] == 0  # it trusts no clients
    assert [each["subject"] for each in ssl.create_default_context(cafile=file).get_ca_certs()][-1] == ((("commonName", "localhost"),),)


def test_a_redis_benchmark_without_tls_is_named(monkeypatch):
    monkeypatch.setattr(clients, "_has_tls", lambda: False)
    with pytest.raises(clients.ClientError, match="this redis-benchmark was built without TLS"):
        clients.redis_benchmark("--tls", keep=True)(None, 1.0)


def test_the_page_tells_what_was_met_missed_and_skipped():
    results = {"machine": {"processor": "1 x test", "Python": "3"}, "rows": [result()]}
    page = report.page(results)
    assert "| [some work](measurements-rows.md#row) | replies/s ≥ 2 x <theirs> | 4.00 x | yes |" in page
    assert "| [some work](measurements-rows.md#row) | replies/s ≥ 1 x gone | - | not known |" in page
    assert "| [some work](measurements-rows.md#row) | lag ≤ 5 | 8.0 | **no** |" in page
    assert "gone skipped (it did not start)" in report.rows_page(results)
    assert "noise 50%" in report.rows_page(results)
    assert "Measured on: 1 x test; Python 3.\n\n## Goals" in page
    noted = report.page({"machine": {}, "note": "It was noisy.", "rows": []})
    assert ".\n\nIt was noisy.\n\n## Goals" in noted


def test_a_figure_has_a_bar_for_each_side_as_long_as_its_median():
    drawing = ET.fromstring(report.figure(result()))
    bars = {each.get("class"): int(each.get("width")) for each in drawing.iterfind("{*}rect[@class]")}
    assert bars == {"ours": 320, "theirs": 80}  # of 400, which are 500 replies/s
    assert [each.text for each in drawing.iterfind("{*}text")] == ["replies/s", "ours", "400", "<theirs>", "100"]


def test_a_report_is_a_page_and_the_figures_of_its_rows_only(tmp_path):
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "old.svg").touch()
    nobody = result(name="nobody", sides={})
    report.write({"machine": {}, "rows": [result(), nobody]}, tmp_path)
    assert {path.name for path in (tmp_path / "measurements").iterdir()} == {"row.svg", "nobody.svg"}
    assert (tmp_path / "measurements.md").exists()
    page = (tmp_path / "measurements-rows.md").read_text()
    assert re.findall(r"\]\(measurements/(.*?)\)", page) == ["row.svg", "nobody.svg"]


def test_each_page_is_short_enough_to_be_a_page():
    every = {"machine": {}, "rows": [result(name=row.name, goals=row.facts()["goals"]) for row in rows.ROWS]}
    assert len(report.page(every).splitlines()) <= 150
    assert len(report.rows_page(every).splitlines()) <= 150


def test_a_row_tells_the_processor_time_of_every_side_and_a_crowd_more():
    sides = {
        name: {"replies/s": [1], "CPU µs/reply": [cpu], "p99 ms": [2], "peak memory MB": [30]}
        for name, cpu in (("ours", 8.91), ("peer", 120))
    }
    assert "; CPU µs/reply: ours 8.9, peer 120; " in report.rows_page({"rows": [result(sides=sides)]})
    crowd = report.rows_page({"rows": [result(name="crowd-500", sides=sides)]})
    assert "; p99 ms: ours 2.0, peer 2.0; peak memory MB: ours 30.0, peer 30.0; " in crowd
    assert "CPU" not in report.rows_page({"rows": [result()]})


# --- the guard -----------------------------------------------------------------------------------------------------------


def ratios(ours, peer, *, at_most=False):
    goals = [{"metric": "replies/s", "bound": 1, "than": "peer", "at_most": at_most}]
    sides = {name: {"replies/s": [value]} for name, value in (("ours", ours), ("peer", peer)) if value is not None}
    return result(goals=goals, sides=sides)


@pytest.mark.parametrize(
    ("then", "now", "fell"),
    [((200, 100), (140, 100), False), ((200, 100), (130, 100), True), ((200, 100), (1, None), False), (None, (1, 100), False)],
)
def test_a_ratio_has_fallen_that_lost_more_than_a_third(then, now, fell):
    [change] = guard.changes(then and ratios(*then), ratios(*now))
    assert change.fell is fell
    assert ("FELL" in str(change)) is fell


@pytest.mark.parametrize(("now", "fell"), [((140, 100), False), ((160, 100), True)])
def test_a_ratio_of_which_less_is_better_has_fallen_when_it_grew(now, fell):
    [change] = guard.changes(ratios(100, 100, at_most=True), ratios(*now, at_most=True))
    assert change.fell is fell


def test_a_row_that_seems_to_have_fallen_is_measured_again(monkeypatch, tmp_path):
    (tmp_path / "recorded.json").write_text(json.dumps({"rows": [{**ratios(200, 100), "name": row.name} for row in guard.watched()]}))
    first, second = guard.watched()[:2]
    rounds = []

    def measure(row, count, seconds, say):
        rounds.append((row.name, count))
        good = count > 1 if row is first else row is not second
        return {**ratios(200 if good else 100, 100), "name": row.name}

    monkeypatch.setattr(guard, "watched", lambda: [first, second])
    monkeypatch.setattr(guard, "measure", measure)
    lines = []
    fallen = guard.guard(lines.append, tmp_path / "recorded.json")
    assert [change.row for change in fallen] == [second.name]
    assert rounds == [(first.name, 1), (first.name, 3), (second.name, 1), (second.name, 3)]
    assert lines == [
        f"{first.name}: replies/s 2.00 x peer, recorded: 2.00",
        f"{second.name}: replies/s 1.00 x peer, recorded: 2.00  FELL",
    ]


def test_the_guard_runs_only_the_sides_that_a_goal_compares():
    sides = {row.name: set(row.sides) for row in guard.watched()}
    assert sides["datagrams"] == {"socketkit adaptive", "ThreadingUDPServer", "UDPServer", "bare loop"}
    assert "idle" not in sides


def test_the_record_is_of_rows_that_exist():
    recorded = json.loads(guard.RECORDED.read_text())["rows"]
    assert {row["name"] for row in recorded} <= {row.name for row in rows.ROWS}
    assert {row.name for row in guard.watched()} - {row["name"] for row in recorded} <= {"interpreters"}  # not on every Python


def test_the_guard_fails_if_something_fell(monkeypatch, capsys):
    monkeypatch.setattr(__main__, "_prepare", lambda: None)
    monkeypatch.setattr(__main__, "guard", lambda say: [])
    assert __main__.main(["--quick"]) == 0
    assert "none of the ratios became worse" in capsys.readouterr().out
    monkeypatch.setattr(__main__, "guard", lambda say: ["one"])
    assert __main__.main(["--quick"]) == 1
    assert capsys.readouterr().out.startswith("1 of the ratios")


def test_the_command_runs_all_rows_unless_told_otherwise():
    assert __main__.arguments([]).only is None
    assert __main__.arguments(["--only", "idle", "--only", "stop"]).only == ["idle", "stop"]
    with pytest.raises(SystemExit, match="2"):
        __main__.arguments(["--only", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        __main__.arguments(["report", "--json", "x"])
    with pytest.raises(SystemExit, match="2"):
        __main__.arguments(["--quick", "--json", "x"])


def test_without_its_environment_it_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tools, "missing", list)
    assert __main__.main(["--quick"]) == 1
    assert "python -m tests.benchmarks setup" in capsys.readouterr().err
    monkeypatch.setattr(tools, "missing", lambda: ["wrk"])
    assert __main__.main([]) == 1
    assert "wrk" in capsys.readouterr().err
