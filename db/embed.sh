#!/bin/sh
# db/embed.sh OUTDIR FILE.sql... -- turns the SQL files into OUTDIR/sql.h and sql.c.
# db/migrations/NNNN_name.sql become rows of pr_migrations[], in order of their number;
# db/queries/name.sql becomes the string sql_name.
set -eu
out=$1; shift
h=$out/sql.h.$$; c=$out/sql.c.$$	# two builds at once (variants) must not write into one another
cstring() {	# a file as C string literals, one per line
	sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/	"&\\n"/' "$1"
}
cat >"$h" <<'H'
/* Made by db/embed.sh from db/: do not edit. */
#ifndef PR_SQL_H
#define PR_SQL_H
struct pr_migration {
	int number;	  /* 1, 2, ... */
	const char *name; /* file name without .sql */
	const char *sql;
};
extern const struct pr_migration pr_migrations[]; /* ends with number 0 */
H
printf '#include "sql.h"\n' >"$c"
for f in "$@"; do
	case $f in
	*/queries/*)
		n=sql_$(basename "$f" .sql)
		echo "extern const char $n[];" >>"$h"
		{ echo "const char $n[] ="; cstring "$f"; echo ";"; } >>"$c" ;;
	esac
done
echo "const struct pr_migration pr_migrations[] = {" >>"$c"
for f in "$@"; do
	case $f in
	*/migrations/*)
		n=$(basename "$f" .sql)
		{ echo "{ $(echo "$n" | sed 's/_.*//; s/^0*//'), \"$n\","; cstring "$f"; echo "},"; } >>"$c" ;;
	esac
done
echo "{ 0, 0, 0 } };" >>"$c"
echo "#endif" >>"$h"
mv "$h" "$out/sql.h"
mv "$c" "$out/sql.c"
