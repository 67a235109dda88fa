"""The real thing: Prometheus scrapes a server, and its tools check the metrics, the alert rules and the dashboard."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_support import PLUGIN, read

from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program, run, wait_until

RULES = PLUGIN / "rules/socketkit.rules.yml"
DASHBOARD = PLUGIN / "dashboards/socketkit.json"

SERVER = """
import json, sys
from socketkit import Server, StreamRequestHandler

class Obeys(StreamRequestHandler):
    def handle(self):
        if self.rfile.readline() == b"raise\\n":
            raise ValueError("asked to")
        self.wfile.write(b"hello\\n")

class Says:
    def server_started(self, server):
        print("serving", *server.urls, flush=True)

import logging
logging.getLogger("socketkit").addHandler(logging.NullHandler())
server = Server(["tcp://127.0.0.1:0", "tcp+prometheus://127.0.0.1:0"], Obeys, dispatcher="prefork:2/pool:4", observers=[Says()])
server.serve_forever()
print("counted", json.dumps([server.stats().accepted, dict(server.stats().outcomes)]))
"""


def promtool(*arguments, **options):
    """Run promtool, which has to find nothing wrong. Return what it says."""
    done = run("promtool", *map(str, arguments), **options)
    return done.stdout + done.stderr


@contextlib.contextmanager
def serving():
    """Serve in a program; return it, and the addresses of its handler and of its metrics."""
    with Program.python("-c", SERVER) as program:
        [urls] = program.line(r"^serving (\S+) (\S+)")
        yield program, *map(address, urls.groups())


@pytest.mark.clients("promtool")
def test_promtool_finds_nothing_wrong_with_the_metrics(tmp_path):
    with serving() as (_, where, metrics):
        talk(where, b"hello\n")
        (tmp_path / "metrics").write_text(read(metrics, "/metrics"))
    with (tmp_path / "metrics").open() as file:
        assert promtool("check", "metrics", stdin=file) == ""


@pytest.mark.clients("promtool")
def test_promtool_finds_nothing_wrong_with_the_alert_rules():
    assert "SUCCESS: 10 rules found" in promtool("check", "rules", RULES)


@pytest.mark.clients("promtool")
def test_the_alert_rules_raise_what_they_should():
    assert "SUCCESS" in promtool("test", "rules", PLUGIN / "rules/tests.yml")


def test_every_alert_rule_has_a_test():
    names = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    raised = set(re.findall(r"alertname: (\w+)\n +exp_alerts", (PLUGIN / "rules/tests.yml").read_text()))
    assert names == raised


def expressions():
    """Return every query of the dashboard, with values for what Grafana replaces."""
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    queries += [each["expr"] for each in board["annotations"]["list"]]
    return [query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*") for query in queries]


@pytest.mark.clients("promtool")
def test_promtool_parses_every_query_of_the_dashboard(tmp_path):
    queries = expressions()
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    assert f"SUCCESS: {len(queries)} rules found" in promtool("check", "rules", tmp_path / "queries.yml")


def test_rules_and_dashboard_name_metrics_that_there_are():
    with serving() as (_, _, metrics):
        exposed = set(re.findall(r"^(socketkit_\w+)", read(metrics, "/metrics"), re.MULTILINE))
    exposed |= {"socketkit_datagrams_dropped_total", "socketkit_certificate_expiry_timestamp_seconds"}  # of servers of another kind
    text = RULES.read_text() + "\n".join(expressions())
    assert set(re.findall(r"\bsocketkit_\w+", text)) - exposed == set()
    for name in exposed:
        if not name.endswith(("_created", "_info")):
            assert name in text, f"neither a rule nor the dashboard uses {name}"


CONFIG = """
global:
  scrape_interval: 200ms
  scrape_timeout: 200ms
scrape_configs:
  - job_name: socketkit
    static_configs:
      - targets: ["{host}:{port}"]
"""


@pytest.mark.clients("prometheus")
@pytest.mark.timeout(120)
def test_prometheus_scrapes_what_the_server_counts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        api = free.getsockname()
    options = (f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}")
    with serving() as (program, where, metrics):
        (tmp_path / "prometheus.yml").write_text(CONFIG.format(host=metrics[0], port=metrics[1]))
        with Program("prometheus", *options, f"--web.listen-address=127.0.0.1:{api[1]}") as prometheus:
            prometheus.line("Server is ready to receive web requests")

            with ThreadPoolExecutor(4) as clients:
                list(clients.map(lambda number: talk(where, b"hello\n" if number % 10 else b"raise\n"), range(200)))
            wait_until(lambda: query(api, 'socketkit_requests_ended_total{outcome="failed"}') == [20])
            wait_until(lambda: query(api, "socketkit_handler_duration_seconds_count") == [200])
            assert query(api, "socketkit_workers_running") == [2]
            assert query(api, "socketkit_handlers_limit") == [8]
            assert query(api, "socketkit_handlers_running") == [0]
            assert query(api, "up") == [1]
            wait_until(lambda: query(api, "histogram_quantile(0.99, socketkit_handler_wait_seconds_bucket) > 0"))
            wait_until(lambda: query(api, "count_over_time(up[1m]) > 2"))
            metadata = json.loads(read(api, "/api/v1/targets/metadata?match_target=" + urllib.parse.quote('{job="socketkit"}')))["data"]
        assert program.stop() == 0
    assert all(each["help"] for each in metadata)
    accepted, outcomes = json.loads(program.line(r"^counted (.*)")[0][1])
    scrapes = outcomes["finished"] - 180
    assert outcomes["failed"] == 20
    assert scrapes > 2
    assert accepted == 200 + scrapes


def query(api, expression):
    """Return the values that Prometheus finds now."""
    found = json.loads(read(api, "/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    return [float(each["value"][1]) for each in found["data"]["result"]]


def test_the_package_holds_dashboard_and_rules():
    folder = Path(__import__("socketkit_prometheus").__file__).parent
    if folder.is_relative_to(PLUGIN):
        pytest.skip("the plugin is used from its sources")
    assert (folder / "dashboards/socketkit.json").read_text() == DASHBOARD.read_text()
    assert (folder / "rules/socketkit.rules.yml").read_text() == RULES.read_text()
