"""What the server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.inference.serving.engine import Engine

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)


class Measures:
    """Counters of one process; they begin anew when another one takes its place."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("salmonn_requests", "Requests ended", ("path", "status"), registry=registry)
        self.tokens = Counter("salmonn_answer_tokens", "Tokens of answers", registry=registry)
        self.heard = Counter("salmonn_heard_seconds", "Seconds of sound heard in answers", registry=registry)
        self.first = Histogram(
            "salmonn_first_token_seconds", "From a request to its first text", buckets=_SECONDS, registry=registry
        )
        self.whole = Histogram(
            "salmonn_answer_seconds", "From a request to its whole answer", buckets=_SECONDS, registry=registry
        )
        waiting = Gauge("salmonn_waiting_questions", "Questions that wait", registry=registry)
        waiting.set_function(lambda: engine.waiting)
        running = Gauge("salmonn_running_questions", "Questions being answered", registry=registry)
        running.set_function(lambda: engine.running)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return bytes(generate_latest(self._registry))
