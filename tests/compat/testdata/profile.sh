# nix profile, and channels.
export USER=root
first=$(nix-build g.nix -A first --no-out-link 2>/dev/null)
mkdir -p tree/bin; printf '#!/bin/sh\necho hello\n' > tree/bin/hello; chmod +x tree/bin/hello
t=$(nix-store --add tree)
P=$STATE/mine
if new; then add="nix profile add"; else add="nix profile install"; fi
x $add --profile $P $t
x $P/bin/hello
x nix profile list --profile $P
x $add --profile $P $first
x readlink -f $P
x nix profile remove --profile $P $t
x nix profile rollback --profile $P
x readlink -f $P
x nix profile wipe-history --profile $P
u nix-store -qR $(readlink -f $P)
x nix-store -q --hash $(readlink -f $P)
# a channel is a file on a server
mkdir -p chan/c; echo '{ }: { v = "from the channel"; }' > chan/c/default.nix
tar cJf chan/nixexprs.tar.xz -C chan --sort=name --mtime=@1 --owner=0 --group=0 c
x nix-channel --add file://$PWD/chan mine
x nix-channel --list
x nix-channel --update
if new; then d=$HOME/.nix-defexpr/channels; else d=$HOME/.nix-defexpr/channels; fi
u ls $d/
x readlink -f $d/mine
x nix-instantiate --eval -E '(import <mine> { }).v' -I $d
x nix-channel --remove mine
x nix-channel --list
x nix-channel --update
u ls $d/
x nix-channel --rollback
u ls $d/
