# Profiles: nix-env with its builtin:buildenv, generations, collecting old ones.
cat > e.nix <<'END'
let tree = dir: name: text: derivation { inherit name; system = builtins.currentSystem; builder = "builtin:buildenv"; derivations = [ "true" "5" "1" (builtins.path { path = dir; inherit name; }) ]; manifest = text; };
in { one = tree ./tree "one-1.0" "1"; newer = tree ./tree "one-1.1" "2"; two = tree ./second "two-2.0" "3"; three = tree ./second "three-3" "3"; clash = tree ./tree "clash-1" "4"; }
END
mkdir -p tree/bin tree/share/doc
printf '#!/bin/sh\necho hello\n' > tree/bin/hello
chmod +x tree/bin/hello
echo doc > tree/share/doc/d
ln -s d tree/share/doc/l
mkdir -p second/bin second/share/doc; echo second > second/bin/second; echo e > second/share/doc/e
export USER=root
P=$STATE/p/profile
mkdir -p $STATE/p
look() { u nix-env -p $P -q --out-path; ls $STATE/p; x readlink -f $P; find -L $P/ | sort; x nix-store -q --hash $(readlink -f $P); }
x nix-env -f e.nix -qa
x nix-env -f e.nix -qaP --out-path
x nix-env -p $P -f e.nix -i one
look
x nix-env -p $P -f e.nix -iA two
x nix-env -p $P -f e.nix -iA newer
look
x $P/bin/hello
x nix-env -p $P -f e.nix -i three --dry-run
b nix-env -p $P -f e.nix -iA clash
x nix-env -p $P -f e.nix -u
x nix-env -p $P -e one
look
x nix-env -p $P -e none
x nix-env -p $P --rollback
look
x nix-env -p $P --switch-generation 1
look
x nix-env -p $P --switch-generation 99
nix-env -p $P --list-generations | awk '{ print $1, $4, $5 }'
x nix-env -p $P --delete-generations 99
x nix-env -p $P --delete-generations 2
x nix-env -p $P --set $(nix-build g.nix -A first --no-out-link 2>/dev/null)
x readlink -f $P
nix-env -p $P --list-generations | awk '{ print $1, $4, $5 }'
x nix-env -p $P --delete-generations old
nix-env -p $P --list-generations | awk '{ print $1, $4, $5 }'
u nix-store --gc --print-live
# the default profile, and its collection
x nix-env -f e.nix -iA one
x nix-env -f e.nix -iA two
u nix-env -q
x readlink $HOME/.nix-profile
ls $(dirname $(readlink $HOME/.nix-profile))
u nix-store --gc --print-live
x nix-collect-garbage -d >/dev/null
ls $(dirname $(readlink $HOME/.nix-profile))
u ls $NIX_STORE_DIR
find $STATE/gcroots $STATE/profiles -type l -not -path '*/auto/*' -not -path '*/gcroots/profiles' | sort
