package protocol

import "cairn/archive"

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
