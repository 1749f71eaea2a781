"""The BentoML service, its HTTP types and its image. Importing any of it switches telemetry off first."""

from serve.telemetry import switch_off_telemetry

switch_off_telemetry()
