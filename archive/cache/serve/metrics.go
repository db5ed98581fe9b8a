package serve

import (
	"fmt"
	"io"
	"sync/atomic"
)

// kind is a sort of request.
type kind int

const (
	kindOther kind = iota
	kindInfo
	kindNarInfo
	kindListing
	kindNAR
	kindLog
	kindRealisation
	kinds
)

var kindNames = [kinds]string{"other", "cache_info", "narinfo", "listing", "nar", "log", "realisation"}

// counters are what /metrics tells.
type counters struct {
	requests [kinds][6]atomic.Int64 // by the first digit of the status
	bytes    atomic.Int64
	remember atomic.Int64 // descriptions that were in memory
	streams  atomic.Int64 // under way
}

func newCounters() *counters { return &counters{} }

// write writes the text format of Prometheus.
func (c *counters) write(w io.Writer) {
	fmt.Fprint(w, "# TYPE cairn_cache_requests_total counter\n")
	for k := range kinds {
		for class := range c.requests[k] {
			if n := c.requests[k][class].Load(); n > 0 {
				fmt.Fprintf(w, "cairn_cache_requests_total{kind=%q,status=\"%dxx\"} %d\n", kindNames[k], class, n)
			}
		}
	}
	fmt.Fprintf(w, "# TYPE cairn_cache_sent_bytes_total counter\ncairn_cache_sent_bytes_total %d\n", c.bytes.Load())
	fmt.Fprintf(w, "# TYPE cairn_cache_remembered_total counter\ncairn_cache_remembered_total %d\n", c.remember.Load())
	fmt.Fprintf(w, "# TYPE cairn_cache_streams gauge\ncairn_cache_streams %d\n", c.streams.Load())
}
