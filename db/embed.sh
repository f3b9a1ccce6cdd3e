#!/bin/sh
# db/embed.sh OUTDIR FILE.sql... -- turns the SQL files into OUTDIR/sql.h and sql.c.
# db/migrations/NNNN_name.sql become rows of pr_migrations[], in order of their number;
# db/queries/name.sql becomes the string sql_name, db/service/name.sql sql_service_name,
# producers/user/name.sql sql_user_name (consumers/ the same), producers/user/openapi.json json_user_openapi and
# producers/concert/page.html html_concert_page, producers/queue/issue.lua lua_queue_issue, lib/page/page.css css_page,
# lib/page/page.js js_page.
set -eu
out=$1; shift
h=$out/sql.h.$$; c=$out/sql.c.$$	# two builds at once (variants) must not write into one another
cstring() {	# a file as C string literals, one per line
	sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/	"&\\n"/' "$1"
}
cat >"$h" <<'H'
/* Made by db/embed.sh from db/, lib/page/, producers/ and consumers/: do not edit. */
#ifndef PR_SQL_H
#define PR_SQL_H
struct pr_migration {
	int number;	  /* 1, 2, ... */
	const char *name; /* file name without .sql */
	const char *sha256; /* of the file */
	const char *sql;
};
extern const struct pr_migration pr_migrations[]; /* ends with number 0 */
H
printf '#include "sql.h"\n' >"$c"
text() {	# a file as the string $2
	echo "extern const char $2[];" >>"$h"
	{ echo "const char $2[] ="; cstring "$1"; echo ";"; } >>"$c"
}
for f in "$@"; do
	room=$(basename "$(dirname "$f")")
	case $f in
	*/queries/*) text "$f" "sql_$(basename "$f" .sql)" ;;
	*/service/*.sql | producers/*.sql | consumers/*.sql) text "$f" "sql_${room}_$(basename "$f" .sql)" ;;
	producers/*.json | consumers/*.json | etc/*.json) text "$f" "json_${room}_$(basename "$f" .json)" ;;
	producers/*.html) text "$f" "html_${room}_$(basename "$f" .html)" ;;
	lib/page/*.css) text "$f" "css_$(basename "$f" .css)" ;;
	lib/page/*.js) text "$f" "js_$(basename "$f" .js)" ;;
	producers/*.lua) text "$f" "lua_${room}_$(basename "$f" .lua)" ;;
	esac
done
echo "const struct pr_migration pr_migrations[] = {" >>"$c"
for f in "$@"; do
	case $f in
	*/migrations/*)
		n=$(basename "$f" .sql)
		sum=$(sha256sum <"$f"); sum=${sum%% *}
		{ echo "{ $(echo "$n" | sed 's/_.*//; s/^0*//'), \"$n\", \"$sum\","; cstring "$f"; echo "},"; } >>"$c" ;;
	esac
done
echo "{ 0, 0, 0, 0 } };" >>"$c"
echo "#endif" >>"$h"
mv "$h" "$out/sql.h"
mv "$c" "$out/sql.c"
