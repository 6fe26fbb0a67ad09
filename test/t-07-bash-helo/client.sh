# needs: bash
# The roughest script there is: HELO, one blind segment before the banner, bare line feeds in the commands.
exec 3<>"/dev/tcp/$HOST/$PORT"
printf 'HELO printer\nMAIL FROM:<printer@example.com>\nRCPT TO:<ada@example.net>\nDATA\nFrom: printer@example.com\nTo: ada@example.net\nSubject: scan ready\n\npage 1\n\r\n.\r\nQUIT\n' >&3
cat <&3
# A bare address is qualified.
exec 3<>"/dev/tcp/$HOST/$PORT"
printf 'HELO cron\r\nMAIL FROM:<root>\r\nRCPT TO:<ada@example.net>\r\nDATA\r\nFrom: root@example.com\r\nSubject: cron ran\r\n\r\nok\r\n.\r\nQUIT\r\n' >&3
cat <&3
