package protocol

import (
	"time"

	"cairn/archive"
)

// DaemonStatus is what OpStatus answers, as JSON.
type DaemonStatus struct {
	Version     string  `json:"version"`
	PID         int     `json:"pid"`
	StoreDir    string  `json:"storeDir"`
	Protocol    string  `json:"protocol"`
	Paths       int     `json:"paths"`
	Durable     bool    `json:"durable"` // what is valid survives a power cut
	Connections int     `json:"connections"`
	Sessions    []Busy  `json:"sessions"`
	Uptime      float64 `json:"uptimeSeconds"`
	Draining    bool    `json:"draining"`
	You         You     `json:"you"`
	Scrub       *Scrub  `json:"scrub"`

	Space     Space           `json:"space"`
	Automatic *AutoCollection `json:"automaticCollection,omitempty"` // nil: min-free is 0
}

// Space is what is free where the store is.
type Space struct {
	Bytes       int64 `json:"bytes"`
	TotalBytes  int64 `json:"totalBytes"`
	Inodes      int64 `json:"inodes,omitempty"`
	TotalInodes int64 `json:"totalInodes,omitempty"` // 0: they are made on demand
}

// AutoCollection is what the daemon does by itself when space is low.
type AutoCollection struct {
	MinFree    string     `json:"minFree"` // settings
	MaxFree    string     `json:"maxFree"`
	Running    bool       `json:"running"`
	Runs       int        `json:"runs"` // since the daemon began
	Last       *time.Time `json:"last,omitempty"`
	Objects    int        `json:"objects"` // of the last one, deleted
	BytesFreed int64      `json:"bytesFreed"`
	Error      string     `json:"error,omitempty"`
	Next       *time.Time `json:"next,omitempty"` // not before; set when the last one did not help
}

// You is who asked, as the daemon knows it.
type You struct {
	archive.Person
	Trusted bool          `json:"trusted"` // may do everything
	Rights  archive.Verbs `json:"rights"`
}

// Busy is a session of DaemonStatus.
type Busy struct {
	UID       int     `json:"uid"`
	PID       int     `json:"pid"`
	Trusted   bool    `json:"trusted"`
	Operation string  `json:"operation,omitempty"` // empty: idle
	Seconds   float64 `json:"seconds,omitempty"`   // since the operation began
}
