/* lib/pii.c -- whether a value, or a member's name, looks like something about a person. Refuses to be
 * clever: a whole text is of one form or it is not; what it finds is a hint for people, not a proof. */
#include "lib/shape.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

static int is_email(const char *s, size_t n)
{
	const char *at = memchr(s, '@', n), *end = s + n, *dot = NULL;

	if (!at || at == s || n > 254)
		return 0;
	for (const char *p = s; p < at; p++)
		if (!isalnum((unsigned char)*p) && (unsigned char)*p < 0x80 && (!*p || !strchr("._%+-'", *p)))
			return 0;
	for (const char *p = at + 1; p < end; p++) {
		if (*p == '.')
			dot = p;
		else if (!isalnum((unsigned char)*p) && *p != '-')
			return 0;
	}
	if (!dot || dot == at + 1 || end - dot < 3)
		return 0;
	for (const char *p = dot + 1; p < end; p++)
		if (!isalpha((unsigned char)*p))
			return 0;
	return 1;
}

/* Digits with what people put between them; -1: something else is in it. */
static int digits_of(const char *s, size_t n, const char *between, char *ret, int max)
{
	int many = 0;

	for (size_t i = 0; i < n; i++) {
		if (isdigit((unsigned char)s[i])) {
			if (many == max)
				return -1;
			ret[many++] = s[i];
		} else if (!s[i] || !strchr(between, s[i])) {
			return -1;
		}
	}
	return many;
}

/* In the form that names a country: digits alone may be anything. */
static int is_phone(const char *s, size_t n)
{
	char d[16];
	int many;

	if (n < 8 || s[0] != '+')
		return 0;
	many = digits_of(s + 1, n - 1, " -()./", d, 15);
	return many >= 8 && d[0] != '0';
}

static int is_card(const char *s, size_t n)
{
	char d[20];
	int many = digits_of(s, n, " -", d, 19), sum = 0;

	if (many < 13 || d[0] < '2' || d[0] > '6')
		return 0;
	for (int i = 0; i < many; i++) {
		int v = d[many - 1 - i] - '0';

		if (i % 2)
			v = v > 4 ? 2 * v - 9 : 2 * v;
		sum += v;
	}
	return sum % 10 == 0;
}

static int is_iban(const char *s, size_t n)
{
	char c[36];
	size_t len = 0;
	unsigned rest = 0;

	for (size_t i = 0; i < n; i++) {
		if (s[i] == ' ')
			continue;
		if (len == 34 || !isalnum((unsigned char)s[i]))
			return 0;
		c[len++] = (char)toupper((unsigned char)s[i]);
	}
	if (len < 15 || !isalpha((unsigned char)c[0]) || !isalpha((unsigned char)c[1]) ||
		!isdigit((unsigned char)c[2]) || !isdigit((unsigned char)c[3]))
		return 0;
	for (size_t i = 0; i < len; i++) {
		char x = c[(i + 4) % len];

		rest = isdigit((unsigned char)x) ? (rest * 10 + (unsigned)(x - '0')) % 97
						 : (rest * 100 + (unsigned)(x - 'A' + 10)) % 97;
	}
	return rest == 1;
}

static int is_ip(const char *s, size_t n)
{
	char text[INET6_ADDRSTRLEN + 1];
	struct in6_addr six;
	struct in_addr four;

	if (n < 7 || n >= sizeof(text))
		return 0;
	memcpy(text, s, n);
	text[n] = '\0';
	return inet_pton(AF_INET, text, &four) == 1 || inet_pton(AF_INET6, text, &six) == 1;
}

unsigned pr_pii_of_text(const char *s, size_t n)
{
	if (n < 7 || n > 254)
		return 0;
	return (unsigned)(is_email(s, n) ? PR_PII_EMAIL : 0) | (unsigned)(is_phone(s, n) ? PR_PII_PHONE : 0) |
	       (unsigned)(is_card(s, n) ? PR_PII_CARD : 0) | (unsigned)(is_iban(s, n) ? PR_PII_IBAN : 0) |
	       (unsigned)(is_ip(s, n) ? PR_PII_IP : 0);
}

/* firstName, first_name and FIRST-NAME are one name. */
unsigned pr_pii_of_name(const char *s, size_t n)
{
	static const char *const names[] = { "email", "emailaddress", "mail", "phone", "phonenumber",
		"mobile", "mobilenumber", "telephone", "tel", "fax", "firstname", "lastname", "surname",
		"givenname", "familyname", "fullname", "middlename", "maidenname", "birthday", "birthdate",
		"dateofbirth", "dob", "ssn", "socialsecuritynumber", "passport", "passportnumber",
		"nationalid", "taxid", "iban", "bankaccount", "accountnumber", "card", "cardnumber",
		"creditcard", "pan", "cvv", "cvc", "address", "street", "streetaddress", "postcode",
		"postalcode", "zip", "zipcode", "ip", "ipaddress", "remoteaddr", "gender", "password",
		"secret", "token", "latitude", "longitude" };
	char plain[32];
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		if (s[i] == '_' || s[i] == '-' || s[i] == ' ')
			continue;
		if (len == sizeof(plain) - 1)
			return 0;
		plain[len++] = (char)tolower((unsigned char)s[i]);
	}
	plain[len] = '\0';
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcmp(plain, names[i]) == 0)
			return PR_PII_KEY;
	return 0;
}
