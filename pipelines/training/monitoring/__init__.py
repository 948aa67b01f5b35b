"""How a run goes: its lines of metrics, curves, times of a step, and the closing report."""
