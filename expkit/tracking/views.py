"""What MLflow's page shows when it opens: charts, and the columns that matter, in a saved view.

A saved view is no documented interface of MLflow's: this was seen in MLflow 3.17. Where another
version does not know it, the page opens with its own default view.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from mlflow import MlflowClient

from expkit.tracking.journal import now_ms

KEY = "expkit"
TAG = f"mlflow.sharedViewState.{KEY}"
"""The experiment's tag that holds the view."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""An experiment's tag that has it open on its runs, and not on pages for language models."""
COLUMNS = [
    "attributes.`Created`",
    "tags.`outcome`",
    "metrics.`time/median_ms`",
    "metrics.`target/ms`",
    "metrics.`verdict/ratio`",
    "tags.`verdict`",
    "metrics.`final/loss`",
    "tags.`device`",
    "tags.`dtype`",
    "tags.`stable`",
    "tags.`sweep`",
]
"""What the table shows beside a run's name; by default MLflow shows neither metrics nor tags."""
MOST = 100
"""The most runs in a chart."""
LINES: dict[str, Any] = {
    "type": "LINE",
    "yAxisKey": "metric",
    "scaleType": "log",
    "lineSmoothness": 0,
    "displayPoints": False,
    "useGlobalLineSmoothing": False,
    "useGlobalXaxisKey": False,
}
CHARTS: list[dict[str, Any]] = [
    LINES
    | {
        "metricKey": "curve/loss",
        "selectedMetricKeys": ["curve/loss"],
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": "curve/seconds",
    },
    LINES
    | {
        "metricKey": "curve/loss",
        "selectedMetricKeys": ["curve/loss"],
        "xAxisKey": "step",
        "xAxisScaleType": "log",
    },
    {"type": "BAR", "metricKey": "time/median_ms"},
    {"type": "BAR", "metricKey": "final/loss"},
    {"type": "BAR", "metricKey": "target/ms"},  # hidden where no run has a target
]


def newest(uri: str) -> str:
    """Return the part of the page's URL that opens the newest experiment's runs in this view."""
    client = MlflowClient(uri)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not runs:
        return "#/experiments"
    experiment = runs[0].info.experiment_id
    if TAG not in client.get_experiment(experiment).tags:
        client.set_experiment_tag(experiment, TAG, view())
    return opened(experiment)


def opened(experiment: str) -> str:
    """Return the part of the page's URL that opens an experiment's runs in the view."""
    query = f"workflowType=machine_learning&viewStateShareKey={KEY}&compareRunsMode=CHART"
    return f"#/experiments/{experiment}/runs?{query}"


def shows(tag: str | None, sweep: str | None) -> bool:
    """Whether an experiment's tag holds the view of this sweep; of all runs, if there is none."""
    return tag is not None and f'"name": {json.dumps(name(sweep))}' in tag


def name(sweep: str | None) -> str:
    """Return the name under which MLflow lists the view."""
    return f"sweep {sweep}" if sweep else "all runs"


def view(sweep: str | None = None) -> str:
    """Return the view as MLflow keeps it in a tag.

    Args:
        sweep: the id of the sweep that it shows; None for all runs.
    """
    section = KEY
    charts = [
        {
            "uuid": f"{section}-{number}",
            "deleted": False,
            "isGenerated": False,
            "metricSectionId": section,
            "runsCountToCompare": MOST,
            "range": {},
            **chart,
        }
        for number, chart in enumerate(CHARTS)
    ]
    state = {
        "searchFilter": f"tags.sweep = '{sweep}'" if sweep else "",
        "orderByKey": "metrics.`time/median_ms`" if sweep else "attributes.start_time",
        "orderByAsc": sweep is not None,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": COLUMNS,
        "columnOrder": COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOW_ALL",
        "runsVisibilityMap": {},
        "runListHidden": False,
        "viewMaximized": False,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "chartsSearchFilter": "",
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0},
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": KEY,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = now_ms()
    saved = {"name": name(sweep), "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(saved)
