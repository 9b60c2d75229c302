"""cluster/examples/monitoring: what Prometheus, Grafana and KubeRay are given, by file name.

`python -m tests.pages` writes the folder again.
"""

import json
from typing import Any

from cluster.observe.alerts import rules
from cluster.observe.grafana import dashboard

_HEAD = "# Made by `python -m tests.pages` from cluster/observe/monitoring.py: change the code, not this file.\n"


def files() -> dict[str, str]:
    """Each file's text, by its path in the folder."""
    return {
        "prometheus.yml": _yaml(_PROMETHEUS),
        "edge-opd.rules.yml": _yaml(rules()),
        "podmonitor.yaml": _yaml(_POD_MONITOR),
        "grafana/edge-opd.json": json.dumps(dashboard(), indent=1) + "\n",
        "grafana/datasource.yml": _yaml(_DATASOURCE),
        "grafana/provider.yml": _yaml(_PROVIDER),
    }


def _yaml(value: dict[str, Any]) -> str:
    import yaml  # Ray's own dependency; only the maker of the folder needs it

    return _HEAD + str(yaml.safe_dump(value, sort_keys=False, width=120))


# Ray writes the discovery file of its newest session; a cluster's nodes are in it.
_DISCOVERY = "/tmp/ray/session_latest/prom_metrics_service_discovery.json"
_PROMETHEUS = {
    "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
    "rule_files": ["edge-opd.rules.yml"],
    "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [_DISCOVERY]}]}],
}
_POD_MONITOR = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "PodMonitor",
    "metadata": {"name": "edge-opd", "labels": {"release": "prometheus"}},
    "spec": {
        "selector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]},
        "podMetricsEndpoints": [{"port": "metrics", "interval": "10s"}],
    },
}
_DATASOURCE = {
    "apiVersion": 1,
    "datasources": [{"name": "Prometheus", "type": "prometheus", "url": "http://localhost:9090", "isDefault": True}],
}
_PROVIDER = {
    "apiVersion": 1,
    "providers": [{"name": "edge-opd", "type": "file", "options": {"path": "/etc/grafana/dashboards"}}],
}
