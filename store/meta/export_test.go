package meta

// Unknown has a database meet an error of a transaction.
func Unknown(d *DB, err error) { d.unknown(err) }

// Reading returns at how many versions somebody reads.
func Reading(d *DB) int {
	d.reads.mu.Lock()
	defer d.reads.mu.Unlock()
	return len(d.reads.at)
}

// CloseBadger closes what Close leaves open.
func CloseBadger(d *DB) error { return d.badger.Close() }

// DropPrefix has Badger throw rows away.
func DropPrefix(d *DB, prefix []byte) error { return d.badger.DropPrefix(prefix) }
