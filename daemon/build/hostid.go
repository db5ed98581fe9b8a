package build

import (
	"bufio"
	"fmt"
	"os"
)

// firstHostID is the first of the host ids that a root daemon gives to builders: a range that
// distributions leave alone.
const firstHostID = 0x3CA00000

// hostID returns the id of the files and processes of the build in a slot, as the host sees them.
// In a container whose ids are a part of the host's, it is one of the last that there are.
func hostID(slot uint32) uint32 {
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return firstHostID + slot
	}
	defer f.Close()
	var end uint32
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var inside, outside, count uint32
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &count); err != nil {
			continue
		}
		if id := firstHostID + slot; id >= inside && id-inside < count {
			return id
		}
		end = max(end, inside+count)
	}
	if end > slot+1 {
		return end - 1 - slot
	}
	return 0
}
