"""What the server counts, in the text form that Prometheus reads."""

import threading
from collections import defaultdict

HELP = {
    "nanochat_requests_total": "Requests by route and HTTP status.",
    "nanochat_requests_cancelled_total": "Requests whose client went away before the end.",
    "nanochat_prompt_tokens_total": "Tokens of prompts.",
    "nanochat_generated_tokens_total": "Tokens of answers.",
    "nanochat_steps_total": "Steps of the batch.",
    "nanochat_running": "Answers that are being written.",
    "nanochat_waiting": "Requests that wait for a place in the batch.",
    "nanochat_time_to_first_token_seconds": "Seconds from a request to its first token.",
    "nanochat_request_seconds": "Seconds from a request to its last token.",
}
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters, gauges and histograms; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._times: dict[str, list[float]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name][_labels(labels)] += amount

    def observe(self, name: str, seconds: float) -> None:
        """Adds a duration to a histogram."""
        with self._lock:
            times = self._times.setdefault(name, [0.0] * (len(BUCKETS) + 2))  # per bucket, number of all, sum
            for index, bound in enumerate(BUCKETS):
                times[index] += seconds <= bound
            times[-2] += 1
            times[-1] += seconds

    def text(self, **gauges: float) -> str:
        """Returns all of it; `gauges` are values of this moment."""
        lines = []
        with self._lock:
            for name, series in self._counts.items():
                lines += _head(name, "counter")
                lines += [
                    f"{name}{labels} {value:g}" if value < 1e6 else f"{name}{labels} {value:.0f}"
                    for labels, value in series.items()
                ]
            for name, value in gauges.items():
                lines += [*_head(name, "gauge"), f"{name} {value:g}"]
            for name, times in self._times.items():
                lines += _head(name, "histogram")
                lines += [
                    f'{name}_bucket{{le="{bound:g}"}} {count:.0f}'
                    for bound, count in zip(BUCKETS, times, strict=False)
                ]
                lines += [f'{name}_bucket{{le="+Inf"}} {times[-2]:.0f}', f"{name}_count {times[-2]:.0f}"]
                lines.append(f"{name}_sum {times[-1]:.6f}")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {HELP.get(name, name)}", f"# TYPE {name} {kind}"]


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(escaped.items())) + "}" if labels else ""
