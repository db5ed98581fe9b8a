package build

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"sync"
)

// firstHostID is the first of the host ids that a root daemon gives to builders: a range that
// distributions leave alone.
const firstHostID = 0x3CA00000

// hostID returns the id of the files and processes of the build in a slot, as the host sees them.
// In a container whose ids are a part of the host's, it is one of the last that there are.
func hostID(slot uint32) uint32 {
	var end uint32
	for _, r := range ownIDs() {
		if id := firstHostID + slot; id >= r.first && id-r.first < r.count {
			return id
		}
		end = max(end, r.first+r.count)
	}
	if end > slot+1 {
		return end - 1 - slot
	}
	return 0
}

type idRange struct{ first, count uint32 }

// ownIDs are those of this process's user namespace, which do not change.
var ownIDs = sync.OnceValue(func() []idRange {
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return []idRange{{0, math.MaxUint32}}
	}
	defer f.Close()
	var list []idRange
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r idRange
		var outside uint32
		if _, err := fmt.Sscan(lines.Text(), &r.first, &outside, &r.count); err == nil {
			list = append(list, r)
		}
	}
	return list
})
