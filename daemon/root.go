package daemon

import (
	"context"
	"fmt"
	"time"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/store/disk"
	"cairn/store/gc"
)

// public reports whether everybody may know of a kind of root: links are there for all to see, what others run or work on is not.
func public(kind gc.Kind) bool {
	return kind == gc.KindLink || kind == gc.KindNamed || kind == gc.KindProfile
}

// roots lists what keeps something; whose process or lease it is, only who may inspect learns.
func (x *session) roots(ctx context.Context, _ struct{}) (reply, error) {
	found, err := gc.Roots(ctx, x.server.store)
	if err != nil {
		return nil, err
	}
	list := []protocol.RootInfo{}
	seen := map[string]bool{}
	for _, r := range found {
		if !x.server.store.IsValid(r.Target) {
			continue
		}
		info := protocol.RootInfo{Kind: string(r.Kind), Name: r.Name, Link: censored, Target: r.Target}
		if x.may(archive.Inspect) || public(r.Kind) {
			who := protocol.Who(r.Who())
			info.Link, info.Who = r.Link, &who
		}
		if key := info.Kind + "\x00" + info.Link + "\x00" + info.Target.String(); !seen[key] {
			seen[key] = true
			list = append(list, info)
		}
	}
	return replyJSON(list)
}

// addRoot keeps an object for the peer's user.
func (x *session) addRoot(_ context.Context, q *protocol.AddRootRequest) (reply, error) {
	r := disk.NamedRoot{UID: x.peer.UID, Name: q.Name, Path: q.Path}
	if q.TTL < 0 || q.TTL > int64(maxTTL/time.Second) {
		return nil, fmt.Errorf("add root: time to live of %d seconds is negative or above %d", q.TTL, maxTTL/time.Second)
	}
	if q.TTL > 0 {
		r.Expires = time.Now().Add(time.Duration(q.TTL) * time.Second)
	}
	r, err := x.server.store.AddNamedRoot(r)
	if err != nil {
		return nil, err
	}
	return replyJSON(rootInfo(r))
}

// maxTTL is the longest time to live of a root: whoever wants more wants it for ever.
const maxTTL = 100 * 365 * 24 * time.Hour

// deleteRoots deletes roots of the peer's user, or those of another if it may pin.
func (x *session) deleteRoots(_ context.Context, q *protocol.DeleteRootsRequest) (reply, error) {
	uid := x.peer.UID
	if q.UID != nil && *q.UID != uid {
		uid = *q.UID
		if err := x.need(archive.Pin, fmt.Sprintf("delete roots of user %d", uid)); err != nil {
			return nil, err
		}
	}
	gone, err := x.server.store.DeleteNamedRoots(uid, q.Names)
	if err != nil {
		return nil, err
	}
	list := make([]protocol.RootInfo, len(gone))
	for i, r := range gone {
		list[i] = rootInfo(r)
	}
	return replyJSON(list)
}

func rootInfo(r disk.NamedRoot) protocol.RootInfo {
	return protocol.RootInfo{
		Kind: string(gc.KindNamed), Name: r.Name, Link: r.Link, Target: r.Path,
		Who: &protocol.Who{UID: r.UID, Since: r.Created, Until: r.Expires},
	}
}
