#!/usr/bin/env bash
# Creates both sources of mistralrs.spec in the current directory from its pinned tag. Requires git, cargo and zstd.
set -euo pipefail
spec="$(dirname "$0")/mistralrs.spec"
tag=$(sed -n 's/^%global tag //p' "$spec")
version=$(sed -n 's/^Version: *//p' "$spec")
url=$(sed -n 's/^URL: *//p' "$spec")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git clone --quiet --depth 1 --branch "$tag" "$url" "$work/mistral.rs-$version"
git -C "$work/mistral.rs-$version" archive --prefix="mistral.rs-$version/" --output "$PWD/mistral.rs-$version.tar.gz" HEAD
cd "$work/mistral.rs-$version"
mkdir vendor
cargo vendor --locked --versioned-dirs vendor > vendor/config.toml
tar --sort=name --owner=0 --group=0 --mtime="@$(git log -1 --format=%ct)" \
  --zstd -cf "$OLDPWD/mistral.rs-$version-vendor.tar.zst" vendor
