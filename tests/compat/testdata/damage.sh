# What was damaged on disk.
first=$(nix-build g.nix -A first --no-out-link 2>/dev/null)
two=$(nix-build g.nix -A two --no-out-link 2>/dev/null)
chmod u+w $first; echo damage >> $first; chmod a-w $first
x nix-store --verify
b nix-store --verify --check-contents
x nix-store --verify-path $first
x nix-store --verify-path $two
x nix store verify $first $two --no-trust
x nix store verify --all --no-trust
nix-store --delete $first >/dev/null 2>&1
x nix-store --verify --check-contents
