package daemon

import (
	"cairn/archive"
	"cairn/daemon/protocol"
)

// Row is a row of the table of operations, for tests.
type Row struct {
	Op     protocol.Op
	Name   string
	Verb   archive.Verbs
	Framed bool
}

// Operations is the table.
func Operations() []Row {
	rows := make([]Row, len(operations))
	for i, o := range operations {
		rows[i] = Row{o.op, o.name, o.verb, o.framed != 0}
	}
	return rows
}
