// Package system turns a folded service graph into the derivation of a system closure,
// and reads the manifest of a built one.
package system
