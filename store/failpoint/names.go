package failpoint

// Names are all failpoints, sorted, and what is the case there.
var Names = []string{
	"build/log/named",          // the file of a build's log is there
	"build/log/packed",         // a packed log is complete below a temporary name
	"build/log/packed-named",   // it has its own, and the plain one is there, too
	"build/log/written",        // the log is complete
	"build/output/copied",      // an output has been read and copied
	"build/outputs/read",       // all outputs have been
	"build/outputs/recorded",   // outputs and realisations are valid, and nobody knows
	"build/outputs/registered", // outputs are valid, realisations are not recorded
	"build/realisation/added",  // one realisation is recorded; it is not linked to the derivation
	"daemon/lowspace/begun",    // a collection that nobody asked for is due
	"daemon/lowspace/ended",    // it is over
	"disk/add/committed",       // rows are committed, the graph does not know them
	"disk/add/complete",        // trees are complete below temporary names
	"disk/add/entered",         // an object is valid, and nobody knows
	"disk/add/flushed",         // trees are durable
	"disk/add/named",           // final names are durable
	"disk/add/received",        // an object that was announced has arrived and is not checked
	"disk/add/renamed",         // one tree has its final name
	"disk/add/split",           // the first transaction of several is committed
	"disk/add/spooled",         // a large file has arrived
	"disk/add/streamed",        // a tree whose name follows from its contents has arrived
	"disk/add/taken-back",      // a failed addition is in the trash
	"disk/add/unpacked",        // the tree of a small object is complete below a temporary name
	"disk/backup/begun",        // a backup has a temporary file
	"disk/backup/deleted",      // an old backup is gone
	"disk/backup/renamed",      // a new backup has its name
	"disk/backup/written",      // it is durable below a temporary name
	"disk/delete/chosen",       // objects are out of the graph
	"disk/delete/removed",      // one of them is gone from the disk
	"disk/delete/rows",         // their rows are deleted
	"disk/delete/trashed",      // one of them is in the trash
	"disk/import/complete",     // all objects of an import are put aside
	"disk/import/received",     // one object of an import is put aside
	"disk/lease/persisted",     // a lease has a row
	"disk/link/done",           // an object's files are links; it is still marked as being written to
	"disk/link/made",           // a link to the pool's file has a temporary name
	"disk/link/marked",         // an object is marked as being written to
	"disk/link/pooled",         // a file is in the pool
	"disk/link/renamed",        // a file of an object is a link; its directory has another time
	"disk/link/renewing",       // another file for the pool's entry has a temporary name
	"disk/pool/entered",        // a file of a new object is the pool's entry, and others are not yet
	"disk/pool/forgotten",      // an entry of the pool that is no good is gone
	"disk/pool/given",          // a file of an addition that is not durable is the pool's entry
	"disk/pool/linked",         // a link to the pool's file that is to replace an equal one has a temporary name
	"disk/pool/taken",          // a file of an addition is a link to the pool's, with which it is not compared yet
	"disk/rebuild/aside",       // an object of which nothing is known any more, or that is damaged, is put aside
	"disk/rebuild/filled",      // the new database is complete below a temporary name
	"disk/rebuild/placed",      // it has its own
	"disk/recover/finished",    // the opening has finished what was interrupted
	"disk/recover/stray",       // it has moved a stray away
	"disk/recover/swept",       // it has moved all of them away
	"disk/recover/trash",       // something is gone from the trash
	"disk/register/canonical",  // an output is canonical
	"disk/register/moved",      // an output has a temporary name of the store
	"disk/remove/entry",        // half of a directory is unlinked
	"disk/replace/away",        // a damaged object is away, and the new one has not its name yet
	"disk/replace/exchange",    // an error stands for a file system that cannot exchange names
	"disk/replace/exchanged",   // old and new have changed names
	"disk/replace/flushed",     // the new tree is durable
	"disk/replace/named",       // the new name is durable
	"disk/replace/next",        // the new tree has the name that the opening looks for
	"disk/replace/trashed",     // the old tree is in the trash
	"disk/root/made",           // a root has a temporary name
	"disk/root/named",          // its own is durable
	"disk/root/removed",        // a root that has expired or is replaced is gone
	"disk/root/renamed",        // it has its own
	"disk/scrub/found",         // a damaged object is noted, and nobody knows
	"disk/scrub/mended",        // an object has other files, and what is known of the old ones, if anything is, is about to go
	"disk/scrub/read",          // an object has been read; what was found is not noted
	"disk/scrub/saved",         // how far the scrub is has its name
	"disk/scrub/written",       // it is durable below a temporary name
	"disk/sweep/link",          // an entry of the pool is gone
	"disk/sweep/stray",         // something that is no object is about to go
	"gc/mark/roots",            // a collection has its roots
	"gc/mark/sealed",           // it knows what is dead
	"gc/sweep/batch",           // one batch is deleted
	"gc/sweep/objects",         // all are, strays and entries of the pool are not
	"meta/commit/begin",        // a transaction is about to be committed
	"meta/commit/durable",      // it is durable, and nobody knows
	"profile/delete/removed",   // a generation's link is gone
	"profile/new/linked",       // a generation's link is there
	"profile/new/named",        // it is durable
	"profile/new/numbered",     // a generation's number is taken for ever
	"profile/number/written",   // the number is in a temporary file
	"profile/switch/made",      // the link to the new generation has a temporary name
	"profile/switch/named",     // the switch is durable
	"profile/switch/renamed",   // the switch has happened
}
