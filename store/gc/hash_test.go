package gc_test

import (
	"cairn/store"
	"cairn/store/storetest"
)

// fileHash returns the hash of the archive of a plain file.
func fileHash(contents string) store.Hash { return store.SHA256.Sum(storetest.File(contents)) }
