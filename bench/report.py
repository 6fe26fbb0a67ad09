"""Reads what the rounds of run.sh have left, prints the table and the verdict of each target.

report.py case FILE              the lines of one case
report.py all DIR PAGE FILE...   everything; PAGE gets it between its marks
"""
import datetime
import json
import os
import re
import statistics
import subprocess
import sys

METRICS = (('accepted_per_s', 'accepts/s'), ('delivered_per_s', 'delivered/s'), ('cpu_us_per_msg', 'CPU µs/mail'), ('peak_pss_mb', 'peak MB'))


def rows(file):
    with open(file) as f:
        return [json.loads(line) for line in f]


def pairs(file, ours='smtpbridge', theirs='postfix'):
    r = rows(file)
    return list(zip([x for x in r if x['system'] == ours], [x for x in r if x['system'] == theirs]))


def ratio(ps, key):
    """Median, least and greatest ratio of the pairs."""
    v = [a[key] / b[key] for a, b in ps if b[key]]
    return statistics.median(v), min(v), max(v)


def name(file):
    return os.path.basename(file).removesuffix('.jsonl')


def case(file):
    ps = pairs(file)
    out = [f'{name(file)}: {len(ps)} pairs']
    for key, label in METRICS:
        m, low, high = ratio(ps, key)
        out.append(f'  {label:12} smtpbridge {statistics.median(a[key] for a, _ in ps):9.1f}  postfix {statistics.median(b[key] for _, b in ps):9.1f}  ratio {m:5.2f} ({low:.2f} .. {high:.2f})')
    for a, b in ps:
        for x in (a, b):
            if x['delivered'] < x['msgs']:
                out.append(f"  NOT ALL DELIVERED by {x['system']}: {x['delivered']} of {x['msgs']}")
    return '\n'.join(out)


def table(files):
    out = ['| Mail, latency of the far end | accepts/s | delivered/s | CPU per mail | peak memory |', '|---|---|---|---|---|']
    for file in files:
        ps = pairs(file)
        cells = []
        for key, label in METRICS:
            m, low, high = ratio(ps, key)
            unit = {'cpu_us_per_msg': ' µs', 'peak_pss_mb': ' MB'}.get(key, '')
            cells.append(f'{statistics.median(a[key] for a, _ in ps):.0f} : {statistics.median(b[key] for _, b in ps):.0f}{unit} = **{m:.2f}**' + (f' ({low:.2f}–{high:.2f})' if len(ps) > 1 else ''))
        a = ps[0][0]
        size = f"{a['size'] // 1024} KiB" if a['size'] < 1 << 20 else f"{a['size'] >> 20} MiB"
        out.append(f"| {size}, {a['latency']}; {a['sessions']} session{'s' * (a['sessions'] > 1)}, {a['conc']} calls at once, {a['msgs']} mails | " + ' | '.join(cells) + ' |')
    return out


def bench(text, what, unit):
    """Median of the values with a unit in the lines of a Go benchmark."""
    v = [float(m) for m in re.findall(r'^Benchmark' + what + r'\S*\s.*?([\d.]+) ' + re.escape(unit) + r'(?:\s|$)', text, re.M)]
    return statistics.median(v) if v else None


def verdicts(d, files):
    by = {name(f): pairs(f) for f in files}
    accept = pairs(os.path.join(d, 'accept.jsonl'), 'smtpbridge queue', 'go-smtp')
    wants = [  # what, ratio, least, most, goal
        ('delivered/s, 10 KiB, no latency', ratio(by['10KB-0ms'], 'delivered_per_s'), 3, None, 5),
        ('delivered/s, 10 KiB, 75 ms, 200 calls at once', ratio(by['10KB-75ms'], 'delivered_per_s'), 3, None, 5),
        ('durable accepts/s, 10 KiB, no latency', ratio(by['10KB-0ms'], 'accepted_per_s'), 4, None, 5),
        ('CPU per mail, 10 KiB', ratio(by['10KB-0ms'], 'cpu_us_per_msg'), None, 1 / 3, 1 / 4),
        ('peak memory, 10 KiB (PSS)', ratio(by['10KB-0ms'], 'peak_pss_mb'), None, 1 / 4, 1 / 5),
        ('delivered/s, 1 MiB', ratio(by['1MB-0ms'], 'delivered_per_s'), 1, None, 1.5),
        ('accepts/s against bare go-smtp that throws the mail away', ratio(accept, 'accepted_per_s'), 0.5, None, 0.6),
    ]
    out = ['| Target, as a ratio | median (least–greatest) | wanted | verdict | goal |', '|---|---|---|---|---|']
    for what, (m, low, high), least, most, goal in wants:
        good = m >= least if least else m <= most
        best = m >= goal if least else m <= goal
        bound = f'at least {least}' if least else f'at most {most:.2f}'
        out.append(f"| {what} | {m:.2f} ({low:.2f}–{high:.2f}) | {bound} | {'met' if good else '**missed**'} | {goal:.2f}{', reached' if best else ''} |")
    return out


def parts(d):
    with open(os.path.join(d, 'go.txt')) as f:
        text = f.read()
    accept = [x for x in rows(os.path.join(d, 'accept.jsonl')) if x['system'] == 'smtpbridge queue']
    grown = statistics.median((x['peak_pss_mb'] - x['idle_pss_mb']) * 1024 / x['msgs'] for x in accept)
    out = ['| Part | |', '|---|---|',
           f"| mails of 10 KiB taken into the queue, nothing delivered | {statistics.median(x['accepted_per_s'] for x in accept):.0f} per second |",
           f'| memory per queued mail: what {accept[0]["msgs"]} queued mails add at most | {grown:.1f} KiB |']
    for what, key, unit, shown in (
            ('webhook events, signed, one each request, durable', 'Intake', 'events/s', '{:.0f} per second'),
            ('MIME, a mail of 8 MiB', 'Parse/8MB', 'MB/s', '{:.0f} MB per second'),
            ('parse, translate and encode, a mail of 10 KiB', 'Translate/10KiB', 'MB/s', '{:.0f} MB per second'),
            ('parse, translate and encode, a mail of 1 MiB with an attachment', 'Translate/1MiB', 'MB/s', '{:.0f} MB per second')):
        v = bench(text, key, unit)
        out.append(f"| {what} | {shown.format(v) if v else 'not measured'} |")
    for esp, mib in re.findall(r'^BenchmarkLargeAttachment/(\S+?)-\d+\s.*?([\d.]+) peak-MiB/mail', text, re.M):
        out.append(f'| heap that a mail with 25 MiB of attachment adds, {esp} | {float(mib):.2f} MiB |')
    return out


def main():
    if sys.argv[1] == 'case':
        print(case(sys.argv[2]))
        return
    d, page, files = sys.argv[2], sys.argv[3], sys.argv[4:]
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), 'unknown')
    version = subprocess.run(['git', 'describe', '--tags', '--always', '--dirty'], capture_output=True, text=True).stdout.strip()
    pf = subprocess.run(['postconf', '-d', '-h', 'mail_version'], capture_output=True, text=True).stdout.strip()
    text = '\n'.join([
        f'Measured on {datetime.date.today()} at {version}, with Postfix {pf}, on a machine of {os.cpu_count()} cores ({cpu}) that load generator and far end share.', '',
        *verdicts(d, files), '', 'Each cell is smtpbridge : Postfix = median of the ratios of the pairs (least–greatest).', '',
        *table(files), '', *parts(d)])
    print(text)
    if page:
        begin, end = '<!-- begin: written by make bench -->', '<!-- end: written by make bench -->'
        old = open(page).read()
        head, rest = old.split(begin)
        _, tail = rest.split(end)
        with open(page, 'w') as f:
            f.write(head + begin + '\n\n' + text + '\n\n' + end + tail)


main()
