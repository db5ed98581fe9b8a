// Package library embeds the service library: Starlark files that a configuration loads as "@cairn//NAME.star".
//
//	prelude.star     what every file sees without loading it: system, user, group, machine, managed_host, simple_service
//	base.star        the root that all services extend, and what a machine is made of: etc, hosts, accounts, tmpfiles,
//	                 packages, units, timers, checks, health checks, ports
//	networking.star  openssh, ntp, rsync, nginx, networkd, static_networking
//
// A new service is one more service_type in one of these files, or one more file; Go knows none of them by name, apart from
// the two names of base.star that package client/config folds with: system_root and essential_services.
// Every program that a service runs is a field, with a path of the host as its default.
package library

import "embed"

//go:embed *.star
var files embed.FS

// Files are the library's files.
func Files() embed.FS { return files }

// Prelude is the file whose names every configuration sees.
const Prelude = "prelude.star"

// Base is the file that holds the root of the service graph.
const Base = "base.star"
