-- wrk script: posts the files named in the environment, in turn, to the path and with the headers
-- that it names too.
-- Each thread starts elsewhere in the list; the last line of output is the result as JSON.

local threads = 0

function setup(thread)
  thread:set("offset", threads * 17)
  threads = threads + 1
end

function init(args)
  requests = {}
  next_request = offset
  local headers = {}
  for name, value in os.getenv("AMDIM_BENCH_HEADERS"):gmatch("([^:\n]+): ([^\n]*)") do
    headers[name] = value
  end
  for path in io.lines(os.getenv("AMDIM_BENCH_PHOTOS")) do
    local file = assert(io.open(path, "rb"))
    requests[#requests + 1] = wrk.format(
      "POST", os.getenv("AMDIM_BENCH_PATH"), headers, file:read("*a"))
    file:close()
  end
end

function request()
  next_request = next_request + 1
  return requests[next_request % #requests + 1]
end

function done(summary, latency, _)
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.status + summary.errors.connect + summary.errors.read
      + summary.errors.write + summary.errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
