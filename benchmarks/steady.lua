-- SPDX-License-Identifier: Apache-2.0
-- The last line that wrk prints, for a program to read.
function done(summary, latency, requests)
  local e = summary.errors
  local text = '{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n'
  io.write(string.format(text, summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
