<?php
// Any language can: a gateway in PHP validates a booking and asks the circuit breaker, through SQL alone.
// php any_language.php DSN USER   prints one line of JSON

declare(strict_types=1);

[, $dsn, $user] = $argv;
$db = new PDO($dsn, $user, null, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION, PDO::ATTR_EMULATE_PREPARES => false]);

function row(PDO $db, string $query, array $values = []): array
{
    $statement = $db->prepare($query);
    $statement->execute($values);
    return $statement->fetch(PDO::FETCH_ASSOC) ?: [];
}

$validation = row($db, 'select success, reason from guard.validate_appointment(?, null, ?)', [1, 'bk_1']);
$missing = row($db, 'select success, reason from guard.validate_appointment(?)', [2]);

$key = 'appointment_booking:service:7';
$failures = 0;
for ($attempt = 0; $attempt < 5; $attempt++) {
    $admission = row($db, 'select allowed, state, token, retry_after_seconds from guard.breaker_acquire(?)', [$key]);
    if (!$admission['allowed']) {
        break;
    }
    $recorded = row($db, 'select state from guard.breaker_record(?, ?, ?, ?)', [$key, $admission['token'], 'failure', 'Timeout']);
    $failures++;
}

try {
    $db->exec('insert into public.appointments (company_id, call_id) values (2, 1)');
    $refused = null;
} catch (PDOException $error) {
    $refused = $error->getCode();
}

echo json_encode([
    'validation' => $validation,
    'missing' => $missing,
    'failures' => $failures,
    'recorded' => $recorded['state'],
    'state' => $admission['state'],
    'retry_after' => (float) $admission['retry_after_seconds'],
    'refused' => $refused,
]), PHP_EOL;
